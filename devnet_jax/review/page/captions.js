// What is said about the present picture, and about its place in the list.

import { byId, count, element, plural } from "./dom.js";
import { PAGE } from "./pictures.js";
import { alarmText, labelText } from "./wall.js";

const digits = (value) => Number(value.toPrecision(4)).toString();

export function drawCaption(item, state) {
  byId("name").textContent = item?.name ?? "";
  const said = byId("verdict"), stage = byId("stage");
  said.textContent = "";
  byId("why").textContent = byId("history").textContent = "";
  stage.dataset.label = item?.label ?? "";
  stage.ariaLabel = item ? `Picture ${item.name}` : "Picture";
  if (!item) return;
  const label = labelText(item);
  const reason = item.alarm && item.reason ? `, ${item.reason}` : "";
  const limit = state.threshold === null ? "" : ` (alarm from ${digits(state.threshold)})`;
  const score = item.score === null ? "" : ` · score ${digits(item.score)}${limit}`;
  said.dataset.alarm = item.alarm;
  said.append("Detector: ", element("b", { textContent: alarmText(item) }), reason, score);
  const facts = [];
  if (label) facts.push(`Your label: ${label}.`);
  if (item.changed) facts.push(`Changed when learning: ${item.changed}.`);
  if (item.why) facts.push(`Shown because: ${item.why}.`);
  if (item.mask) facts.push("Has a mask.");
  byId("why").textContent = facts.join(" ");
  byId("history").textContent = (item.history ?? []).map((entry) => {
    const who = entry.reviewer ? ` by ${entry.reviewer}` : "";
    return `${labelText(entry) || "label taken back"}${who}, ${clock(entry.time)}`;
  }).join(" · ");
}

// Times come as text in ISO 8601 or as seconds.
function clock(time) {
  const date = new Date(typeof time === "number" ? 1000 * time : time);
  return Number.isNaN(date.valueOf()) ? `${time}` : date.toLocaleString();
}

export function drawOffer(n, show) {
  byId("offer").hidden = !n || show === "changed";
  byId("offer").firstElementChild.textContent = `${count(n)} changed sides`;
}

export function drawPlace(pictures, state, onWall) {
  const { items, index, start, total } = pictures;
  if (pictures.show === "unseen") {
    const left = state.n - state.n_looked;
    byId("place").textContent = left ? `${count(left)} to look at` : "all looked at";
  } else if (onWall || !items.length) {
    byId("place").textContent = plural(total, "picture");
  } else {
    const place = Math.min(index + 1, items.length) + start;
    byId("place").textContent = `${count(place)} of ${count(Math.max(total, place))}`;
  }
}

export function drawPages(pictures, page) {
  const { items, start, total, ended } = pictures;
  const first = Math.floor(start / PAGE);
  const n = ended ? items.length : Math.max(items.length, total - start);
  const pages = Math.max(1, first + Math.ceil(n / PAGE));
  byId("page").value = first + page + 1;
  byId("page").max = pages;
  byId("n-pages").textContent = `of ${count(pages)}`;
  byId("page-previous").disabled = first + page === 0;
  byId("page-next").disabled = ended && (page + 1) * PAGE >= items.length;
}
