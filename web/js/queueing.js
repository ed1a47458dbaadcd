// Older frontends do not say that a prompt is queued; here they say it as today's does.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

export function announceQueueing() {
  const queue = app.queuePrompt;
  let said = false;
  api.addEventListener("promptQueueing", () => {
    said = true;
  });
  app.queuePrompt = function (number, batchCount = 1, ...others) {
    said = false;
    const answer = queue.call(this, number, batchCount, ...others);
    if (!said) api.dispatchCustomEvent("promptQueueing", { requestId: 0, batchCount });
    return answer;
  };
}
