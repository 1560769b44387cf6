// The page as a whole: what a key or a button does, and what follows from the server's answers.

import { getJson } from "./api.js";
import { Brush } from "./brush.js";
import { byId, count, pause, plural, say, showProblem } from "./dom.js";
import { drawDone, openDone } from "./done.js";
import { listen, wire } from "./keys.js";
import { Kinds } from "./kinds.js";
import { drawCaption, drawOffer, drawPages, drawPlace } from "./captions.js";
import { Link } from "./link.js";
import { drawPanel } from "./panel.js";
import { PAGE, Pictures } from "./pictures.js";
import { Viewer } from "./viewer.js";
import { Wall, labelText } from "./wall.js";

const LEARN_AFTER = 5; // labels

let unlearned = 0; // labels since the last learning
let fresh = false; // the detector: it has not scored all pictures yet
let stale = false; // the wall is drawn anew when nothing is selected any more
let opened = false, selected = 0; // of the list; pictures on the wall

const reviewer = () => byId("reviewer").value.trim();
const link = new Link({ stateCame, takenBack, refused, drawState });
const { outbox } = link;
const pictures = new Pictures(() => outbox.idle());
const viewer = new Viewer();
const brush = new Brush(viewer, (item, blob) => link.sendMask(item, blob, reviewer()));
const kinds = new Kinds((kind) => attempt(() => label("anomaly", kind)));
const wall = new Wall(pictures, {
  open: (id) => attempt(() => pictures.goTo(id).then(() => showWall(false))), drawn: wallDrawn,
});

// Without a connection the page says so, and goes on when it is there again.
async function attempt(act) {
  try {
    await act();
  } catch (error) {
    link.lost(error);
  }
}

// ---- the server's answers

async function stateCame(before, others) {
  drawState();
  if (!opened) return void await open();
  if (!before) return;
  const { state } = link;
  const scored = state.n_scored !== before.n_scored;
  const begins = state.generation !== before.generation;
  if (begins) [fresh, unlearned] = [true, 0];
  if (!state.n_pending && fresh) await learned();
  else if (begins || (!state.n_pending && before.n_pending)) await renew(0);
  else if (others) await renew(pictures.start);
  else if (scored && pictures.current?.score === null) await drawAll();
  if (!pictures.current && !pictures.ended) await move(0); // it had to wait
  if (state.error && state.error !== before.error) say(state.error);
  if (state.finished && before.working?.task === "finishing") say("Finished.");
}

async function refused(entry, error) {
  showProblem(error.message);
  const isMask = entry.path.startsWith("/mask/");
  const { ids = [], defect } = isMask ? { ids: [parseInt(entry.path.slice(6))] } : JSON.parse(entry.body);
  if (defect) kinds.forget(defect);
  await update(ids); // the label that it still has
  draw();
}

// ---- drawing

function drawState() {
  const { state } = link;
  if (!state) return;
  kinds.update(state);
  drawPanel(state, kinds.all, outbox.size);
  drawDone(state);
  drawPlace(pictures, state, wall.isOpen);
  for (const id of ["learn", "finish"]) byId(id).disabled = !link.connected;
}

function draw() {
  if (wall.isOpen) wall.draw();
  else drawPicture();
  drawState();
}

function drawPicture() {
  const item = pictures.current;
  drawCaption(item, link.state);
  viewer.show(item, link.state.generation);
  viewer.prefetch(pictures.items.slice(pictures.index + 1, pictures.index + 4).map((each) => each.id));
  if (!item && pictures.ended) {
    viewer.notice(`${pictures.items.length ? "That was the last picture of this list."
      : "No picture is in this list."} Choose another one under “Show”, or finish.`);
  } else if (!item) viewer.notice("More pictures are coming");
}

// Draws, and asks what the list does not say: the size and the history.
async function drawAll() {
  draw();
  const item = pictures.current;
  if (!wall.isOpen && item) {
    await update([item.id]).catch(() => {});
    if (pictures.current === item) draw();
  }
  pictures.ahead().catch(() => {});
}

async function update(ids) {
  if (await pictures.update(ids)) return;
  viewer.forget();
  wall.forget();
  await open();
}

function wallDrawn(n) {
  drawPages(pictures, wall.page);
  if (n !== selected && n) say(`${plural(n, "picture")} selected`);
  selected = n;
  if (!n && stale) attempt(() => renew(0));
}

// ---- lists

async function open(start = 0) {
  opened = true;
  stale = false;
  await brush.close();
  try {
    await pictures.open(start);
  } catch (error) {
    opened = false; // tried again with the next state
    return link.lost(error);
  }
  if (wall.isOpen) wall.select([]);
  await drawAll();
}

// Loads the list anew, without taking the present picture or a selection away.
async function renew(start) {
  stale = wall.isOpen && wall.hasSelection;
  if (stale) return;
  if (wall.isOpen) {
    await open(start ? start + wall.page * PAGE : 0);
    return;
  }
  await pictures.renew(start);
  await drawAll();
}

async function learned() {
  fresh = false;
  const { n_changed: n } = link.state;
  drawOffer(n, pictures.show);
  say(n ? `Learned: ${plural(n, "picture")} changed sides.` : "Learned: no picture changed sides.");
  await renew(0);
}

async function move(step) {
  if (wall.isOpen) return;
  await brush.close();
  const moved = pictures.move(step);
  await Promise.race([moved, pause(0)]); // what is loaded is shown at once
  draw();
  await moved;
  await drawAll();
}

async function showWall(shown) {
  await brush.close();
  byId("wall").hidden = byId("pages").hidden = !shown;
  byId("wall-toggle").setAttribute("aria-pressed", shown);
  for (const id of ["previous", "next", "stage", "caption"]) byId(id).hidden = shown;
  if (shown) {
    await wall.show();
    wall.focus(pictures.current?.id);
  } else {
    await drawAll();
    byId("stage").focus();
  }
  drawState();
}

// ---- labels

function targets() {
  if (wall.isOpen) return wall.targets;
  const item = pictures.current;
  return item && viewer.ready === item.id ? [item] : [];
}

async function label(value, defect = "") {
  const items = targets();
  if (!items.length) {
    say(wall.isOpen ? "Select pictures first: click their corners, or press Space on them."
      : "Wait until the picture is seen.");
    return;
  }
  showProblem("");
  const ids = items.map((item) => item.id);
  for (const item of items) Object.assign(item, { label: value, defect, labelled: true });
  if (value === "anomaly") kinds.use(defect);
  viewer.ready = null; // one label for one look
  const what = labelText(items[0]);
  say(ids.length > 1 ? `${count(ids.length)} pictures: ${what}` : `${items[0].name}: ${what}`);
  await attempt(() => brush.close()); // its mask is sent first
  const names = Object.fromEntries(items.map((item) => [item.id, item.name]));
  outbox.post("/api/label", { ids, label: value, defect, reviewer: reviewer() }, names);
  if (value !== "skip") unlearned += ids.length;
  if (byId("auto").checked && unlearned >= LEARN_AFTER) learn();
  if (wall.isOpen) {
    wall.select([]);
    wall.focus();
  } else await move(1);
}

function undo() {
  const entry = outbox.takeBack("/api/label");
  if (!entry) return outbox.post("/api/undo", { reviewer: reviewer() });
  const { ids } = JSON.parse(entry.body);
  for (const item of pictures.items) {
    if (ids.includes(item.id)) Object.assign(item, { label: "", defect: "" });
  }
  takenBack(ids);
}

async function takenBack(ids) {
  if (!ids.length) return say("Nothing is left to take back.");
  unlearned = Math.max(0, unlearned - ids.length);
  say(`Taken back: ${plural(ids.length, "label")}.`);
  if (link.connected) await update(ids).catch(() => {});
  if (wall.isOpen) {
    wall.draw();
    wall.focus(ids[0]);
    return;
  }
  await brush.close();
  await pictures.goTo(ids[0]);
  await drawAll();
}

function learn() {
  unlearned = 0;
  outbox.post("/api/learn");
}

function finish() {
  outbox.post("/api/finish");
  openDone(link.state, true);
}

async function toggleBrush() {
  if (wall.isOpen) return;
  if (brush.item) return void await brush.close();
  const item = pictures.current;
  if (!item || viewer.ready !== item.id) return;
  if (!item.width) await update([item.id]);
  await brush.open(item);
  say("Paint over the defect. The mask is saved when you go on.");
}

function lookAtChanged() {
  if (!link.state.n_changed) return say("No picture changed sides.");
  byId("show").value = pictures.show = "changed";
  byId("offer").hidden = true;
  return open();
}

function escape() {
  if (brush.item) brush.close();
  else if (wall.isOpen && wall.hasSelection) wall.select([]);
  else if (wall.isOpen) showWall(false);
  else viewer.fit();
}

const actions = {
  good: () => label("good"), skip: () => label("skip"), undo, learn, finish, escape,
  defect: () => (targets().length ? kinds.open() : label("anomaly")),
  digit: (n) => kinds.ofDigit(n) !== undefined && label("anomaly", kinds.ofDigit(n)),
  next: () => move(1), previous: () => move(-1), wall: () => showWall(!wall.isOpen),
  nextPage: () => wall.turn(1, open), previousPage: () => wall.turn(-1, open),
  map: () => !wall.isOpen && viewer.toggleMap(), brush: toggleBrush,
  zoomIn: () => viewer.zoomBy(1.5), zoomOut: () => viewer.zoomBy(1 / 1.5), fit: () => viewer.fit(),
  pan: (x, y) => viewer.pan(80 * x, 80 * y), changed: lookAtChanged,
  help: () => byId("help").showModal(), results: () => openDone(link.state, false),
  stepBrush: (x, y) => brush.step(x, y), dab: () => brush.dab(),
  save: async () => await brush.store() || say("Nothing new is painted."),
  toggleErase: () => brush.toggleErase(), smaller: () => brush.resize(0.8),
  larger: () => brush.resize(1.25),
};

const fields = {
  order: (value) => { pictures.order = value; return open(); },
  show: (value) => { pictures.show = value; return open(); },
  page: (value) => wall.isOpen && open(Math.max(0, Math.floor(value) - 1) * PAGE),
};

wire(actions, fields, attempt);
listen(actions, () => (wall.isOpen ? "wall" : brush.item ? "brush" : "viewer"), attempt);
link.start();
