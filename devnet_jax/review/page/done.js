// The end: where the results are, and the commands to go on.

import { byId, element, say } from "./dom.js";
import { setProgress } from "./panel.js";

const WORDS = { csv: "Labels, as a table", detector: "Detector", report: "Its report" };

export function openDone(state, starts) {
  byId("done").dataset.waits = starts ? "yes" : "";
  drawDone(state);
  byId("done").showModal();
}

export function drawDone(state) {
  const dialog = byId("done"), { working, finished, error } = state;
  if (working?.task === "finishing") dialog.dataset.waits = "seen";
  else if (dialog.dataset.waits === "seen") dialog.dataset.waits = "";
  const waits = Boolean(dialog.dataset.waits) && !(error && !working);
  byId("done-bar").hidden = !waits;
  setProgress(byId("done-bar"), working?.task === "finishing" ? working : null);
  const text = waits ? "Writing the labels, then the detector and its report. You can close this and go on."
    : error ? error : `All is written. Your pictures are as they were. ${noteOf(finished)}`.trim();
  if (byId("done-text").textContent !== text) byId("done-text").textContent = text;
  drawList(waits ? null : finished);
}

// Returns what to know about the detector, as a sentence.
function noteOf(finished) {
  const note = finished?.note ?? "";
  return note && `But ${note}.`;
}

function drawList(finished) {
  const list = byId("done-list"), text = JSON.stringify(finished);
  if (list.dataset.drawn === text) return;
  list.dataset.drawn = text;
  list.replaceChildren();
  if (!finished) return;
  for (const [name, words] of Object.entries(WORDS)) {
    if (finished[name]) list.append(element("dt", { textContent: words }), row(finished[name]));
  }
  if (finished.commands?.length) {
    list.append(element("dt", { textContent: "Commands to go on" }), ...finished.commands.map(row));
  }
}

function row(text) {
  const code = element("code", { textContent: text });
  const button = element("button", { textContent: "Copy", ariaLabel: `Copy ${text}` });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      say("Copied.");
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    } catch {
      getSelection().selectAllChildren(code); // not allowed: selected, to be copied by hand
    }
  });
  return element("dd", {}, code, button);
}
