// The host keeps a node's live preview when the node is done. Where the node then shows pictures of its own, as a
// training shows its loss, the preview would hide them, or stand beside them.
import { api } from "../../../scripts/api.js";
import { isOurs, nodeOf } from "./graph.js";

const STORE = "nodeOutput";

/** Milliseconds after which the host has dropped a preview that it was told to drop. */
const DROPPED = 600;

/** The host's own store of pictures in nodes; undefined in a frontend that has another. */
const storeOfPictures = () =>
  document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s?.get(STORE);

function dropPreview({ detail }) {
  const id = String(detail.display_node ?? detail.node);
  const node = detail.output?.images?.length ? nodeOf(id) : null;
  if (!node || !isOurs(node)) return;
  const store = storeOfPictures();
  if (!store?.getNodePreviews?.(node)?.length || !store.setNodeOutputsByExecutionId) return;
  store.revokePreviewsByExecutionId(id); // which waits, for a preview that follows at once
  const output = { ...detail.output, images: [...detail.output.images] }; // another one, so that it is drawn anew
  setTimeout(() => nodeOf(id) === node && store.setNodeOutputsByExecutionId(id, output), DROPPED);
}

export const listenToPreviews = () => api.addEventListener("executed", dropPreview);
