// The host keeps a node's live preview when the node is done. Where the node then shows pictures of its own, as a
// training shows its loss, the preview would hide them, or stand beside them.
import { api } from "../../../scripts/api.js";
import { isOurs, nodeOf } from "./graph.js";

const STORE = "nodeOutput";

/** The host's own store of pictures in nodes; undefined in a frontend that has another. */
const storeOfPictures = () =>
  document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s?.get(STORE);

function dropPreview({ detail }) {
  const id = String(detail.display_node ?? detail.node);
  const node = detail.output?.images?.length ? nodeOf(id) : null;
  if (!node || !isOurs(node)) return;
  const store = storeOfPictures();
  if (!store?.revokePreviewsByLocatorId) return;
  store.revokePreviewsByLocatorId(node.graph.isRootGraph ? String(node.id) : `${node.graph.id}:${node.id}`);
  store.refreshNodeOutputs?.(node); // the host has drawn its pictures already, with the preview before them
}

export const listenToPreviews = () => api.addEventListener("executed", dropPreview);
