// What has been labelled, how good the detector is, and what it is doing.

import { byId, count, element, plural } from "./dom.js";

const TASKS = { learning: "Learning", scoring: "Scoring the pictures", finishing: "Finishing" };
const hundredths = (share) => Math.round(100 * share);
const digits = (value) => value.toFixed(2);
const known = (...values) => values.every((value) => typeof value === "number");

// Returns "a" or "a to b".
const between = (low, high) => (low === high ? `${low}` : `${low} to ${high}`);

export function drawPanel(state, kinds, waiting) {
  const looked = `${count(state.n_looked)} of ${plural(state.n, "picture")} looked at`;
  setText("looked", waiting ? `${looked}, ${plural(waiting, "answer")} waiting` : looked);
  byId("looked-bar").max = Math.max(1, state.n);
  byId("looked-bar").value = state.n_looked;
  drawCounts(state, kinds);
  const missing = state.n - state.n_scored;
  setText("alarms", missing && (state.n_pending || !state.n_scored)
    ? `${count(state.n_scored)} of ${plural(state.n, "picture")} have a score.`
    : `It gives an alarm for ${count(state.n_alarms)} of ${plural(state.n, "picture")}.`
      + (missing ? ` ${count(missing)} cannot be read.` : ""));
  setText("note", state.note);
  byId("note").hidden = !state.note;
  drawEstimate(state);
  const { working } = state;
  byId("working").hidden = !working;
  if (working) {
    const text = TASKS[working.task] ?? working.task;
    byId("working").firstElementChild.textContent = working.of
      ? `${text}: ${count(working.done)} of ${count(working.of)}` : `${text} …`;
    setProgress(byId("working-bar"), working);
  }
  setText("input", state.input);
  byId("results").hidden = !state.finished;
}

export function setProgress(bar, working) {
  if (working?.of) {
    bar.max = working.of;
    bar.value = working.done;
  } else bar.removeAttribute("value"); // moves to and fro
}

// Does not touch what has not changed: a screen reader would read it again.
function setText(id, text) {
  const target = byId(id);
  if (target.textContent !== text) target.textContent = text;
}

function drawCounts(state, kinds) {
  const rows = [["good", state.n_good, "g"]];
  kinds.forEach((kind, i) => {
    const n = state.kinds[kind] ?? 0;
    if (n || i < 9) rows.push([kind, n, i < 9 ? `${i + 1}` : ""]);
  });
  if (state.kinds[""]) rows.push(["defect of no kind", state.kinds[""], ""]);
  if (state.n_skipped) rows.push(["skipped", state.n_skipped, "s"]);
  const list = byId("counts"), text = JSON.stringify(rows);
  if (list.dataset.drawn === text) return;
  list.dataset.drawn = text;
  list.replaceChildren(...rows.map(([name, n, key]) => element(
    "li", { className: n ? "" : "none" },
    element("kbd", { textContent: key, hidden: !key, title: "key" }),
    element("span", { textContent: name, dir: "auto", className: "path" }),
    element("b", { textContent: count(n) }),
  )));
}

const CELLS = {
  missed: (each) => (known(each.miss_rate)
    ? [`about ${hundredths(each.miss_rate)}`,
      known(each.miss_low, each.miss_high)
        ? `(${between(hundredths(each.miss_low), hundredths(each.miss_high))})` : ""] : ["–", ""]),
  auroc: (each) => (known(each.auroc)
    ? [digits(each.auroc),
      known(each.low, each.high) ? `(${digits(each.low)} to ${digits(each.high)})` : ""] : ["–", ""]),
  // Without a run, pictures that nobody has looked at count as good.
  basis: (each, state) => [plural(each.n_anomaly, "defect"),
    `and ${count(each.n_normal)} ${state.has_run ? "good" : "taken for good"}`],
};

function drawEstimate(state) {
  const now = state.estimate, before = state.estimate_before;
  byId("no-estimate").hidden = Boolean(now);
  byId("estimate").hidden = !now;
  byId("words").hidden = !now;
  if (!now) return;
  byId("estimate").classList.toggle("alone", !before);
  for (const cell of byId("estimate").querySelectorAll("td[data-of]")) {
    const each = cell.dataset.of === "now" ? now : before;
    const [value, interval] = each ? CELLS[cell.dataset.what](each, state) : ["", ""];
    if (cell.textContent !== value + interval) {
      cell.replaceChildren(element("b", { textContent: value }), element("span", { textContent: interval }));
    }
  }
  setText("words", estimateInWords(now));
}

// Returns what the estimate means, for somebody who knows no statistics.
export function estimateInWords(each) {
  const parts = [];
  if (known(each.miss_rate)) {
    const range = known(each.miss_low, each.miss_high)
      ? ` (from ${hundredths(each.miss_low)} to ${hundredths(each.miss_high)})` : "";
    parts.push(`Of 100 defects about ${hundredths(each.miss_rate)} would be missed${range}.`);
  }
  if (known(each.auroc)) {
    parts.push(`In ${hundredths(each.auroc)} of 100 pairs the defect scores above the good picture.`);
  }
  if (each.n_anomaly < 10) parts.push("With so few defects this is rough.");
  return parts.join(" ");
}
