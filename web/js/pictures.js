// Pictures that nodes of ours hand to the page, drawn by this extension instead of the host's own preview.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

/** The address of a picture as a node's output names it. */
export function addressOf({ filename, subfolder = "", type = "temp" }) {
  const query = new URLSearchParams({ filename, subfolder, type });
  return api.apiURL(`/view?${query}${app.getPreviewFormatParam?.() ?? ""}${app.getRandParam?.() ?? ""}`);
}

/** Keep the host from drawing this one node's pictures a second time, in both of its renderers. */
export function drawOwnPictures(node) {
  node.hideOutputImages = true;
  node.onDrawBackground = () => {};
}
