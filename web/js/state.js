// What the server knows of this page's workflows: asked for after the page was loaded, never used to start anything.
import { api } from "../../../scripts/api.js";
import { workflowId } from "./graph.js";

const NOTHING = { running: null, downloads: null, last: null };

/** As nodes/host/report/state.py describes it; with `last` for the workflow in sight. */
export async function askState() {
  try {
    const answer = await api.fetchApi(`/cascade_studio/state?workflow=${encodeURIComponent(workflowId() ?? "")}`);
    return answer.ok ? await answer.json() : NOTHING;
  } catch {
    return NOTHING; // an older server, or one that is gone
  }
}
