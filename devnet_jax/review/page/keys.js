// The keys and the buttons. No key acts while one types, or while a dialog is open.

import { byId, showProblem } from "./dom.js";

const FIELDS = "input:not([type=checkbox]):not([type=range]), select, textarea, [contenteditable]";
const PANS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const REPEATED = new Set(["next", "previous", "zoomIn", "zoomOut", "smaller", "larger"]);

const KEYS = {
  g: "good", d: "defect", s: "skip", u: "undo", n: "next", p: "previous", m: "map", b: "brush",
  w: "wall", l: "learn", c: "changed", "?": "help", "+": "zoomIn", "=": "zoomIn", "-": "zoomOut",
  0: "fit", Escape: "escape",
};
const VIEWER_KEYS = { ArrowRight: "next", ArrowLeft: "previous" };
const WALL_KEYS = { PageDown: "nextPage", PageUp: "previousPage" };
const BRUSH_KEYS = { e: "toggleErase", "[": "smaller", "]": "larger" };

// actions: a function for each name above, and digit(n), pan(dx, dy), stepBrush(dx, dy), dab(),
// save(); where: returns "viewer", "wall" or "brush"; attempt(function): calls it
export function listen(actions, where, attempt) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest(FIELDS) || document.querySelector("dialog[open]")) return;
    const act = find(event, where());
    if (!act) return;
    event.preventDefault();
    // A key held down must not label one picture after the other.
    if (event.repeat && !act.repeats) return;
    attempt(() => act.run(actions));
  });
}

function find(event, place) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const pan = PANS[key];
  // The arrows move a slider that has the focus; Enter and space press a button that has it.
  if (event.target.closest("input[type=range]") && pan) return null;
  const onControl = event.target.closest("button, summary, input, a");
  if (place === "brush") {
    if (pan && !event.shiftKey) return { run: (act) => act.stepBrush(-pan[0], -pan[1]), repeats: true };
    if (key === " " && !onControl) return { run: (act) => act.dab() };
    if (key === "Enter" && !onControl) return { run: (act) => act.save() };
  }
  if (pan && event.shiftKey && place !== "wall") {
    return { run: (act) => act.pan(...pan), repeats: true };
  }
  if (/^[1-9]$/.test(key)) return { run: (act) => act.digit(Number(key)) };
  const extra = { viewer: VIEWER_KEYS, wall: WALL_KEYS, brush: BRUSH_KEYS }[place];
  const name = extra[key] ?? KEYS[key];
  return name ? { run: (act) => act[name](), repeats: REPEATED.has(name) } : null;
}

const BUTTONS = {
  good: "good", defect: "defect", skip: "skip", undo: "undo", previous: "previous", next: "next",
  "wall-toggle": "wall", "map-toggle": "map", "brush-toggle": "brush", "brush-save": "save",
  "zoom-in": "zoomIn", "zoom-out": "zoomOut", "zoom-fit": "fit", "page-previous": "previousPage",
  "page-next": "nextPage", "offer-take": "changed", learn: "learn", finish: "finish",
  results: "results", "help-open": "help",
};

// fields: for each name of a field, a function of its new value
export function wire(actions, fields, attempt) {
  for (const [id, name] of Object.entries(BUTTONS)) {
    byId(id).addEventListener("click", () => attempt(() => actions[name]()));
  }
  byId("offer-close").addEventListener("click", () => { byId("offer").hidden = true; });
  byId("problem").querySelector("button").addEventListener("click", () => showProblem(""));
  let byPointer = false;
  document.addEventListener("pointerdown", () => { byPointer = true; });
  document.addEventListener("keydown", () => { byPointer = false; });
  for (const [id, change] of Object.entries(fields)) {
    byId(id).addEventListener("change", async (event) => {
      await attempt(() => change(event.target.value));
      // Who uses the mouse expects the keys to act again; who uses the keyboard is still choosing.
      if (byPointer && event.target.matches("select")) event.target.blur();
    });
  }
  remember("reviewer", "value");
  remember("auto", "checked");
}

// Keeps a setting of this browser.
function remember(id, property) {
  const field = byId(id), key = `devnet-review-${id}`;
  const kept = localStorage.getItem(key);
  if (kept !== null) field[property] = JSON.parse(kept);
  field.addEventListener("change", () => localStorage.setItem(key, JSON.stringify(field[property])));
}
