// A wall of small pictures, a page at a time; many can be selected and labelled at once.

import { byId, count, element } from "./dom.js";
import { PAGE } from "./pictures.js";

export const LABELS = { good: "good", anomaly: "defect", skip: "skipped" };

// Returns the label in words: "defect: scratch".
export function labelText(item) {
  const label = LABELS[item.label] ?? "";
  return item.label === "anomaly" && item.defect ? `${label}: ${item.defect}` : label;
}

export const alarmText = (item) => (
  item.alarm === null ? "no score yet" : item.alarm ? "alarm" : "no alarm"
);

export class Wall {
  #wall = byId("wall");
  #selected = new Set(); // numbers of pictures
  #cards = new Map(); // number of a picture → element
  #focus = null; // number of the picture that Tab reaches
  #anchor = null; // first picture of a selected range

  // on: {open(id), drawn(number of selected pictures)}
  constructor(pictures, on) {
    this.pictures = pictures;
    this.on = on;
    this.#wall.addEventListener("click", (event) => this.#click(event));
    this.#wall.addEventListener("keydown", (event) => this.#key(event));
    this.#wall.addEventListener("focusin", (event) => {
      const id = this.#idOf(event.target);
      if (id !== null) this.#setFocus(id);
    });
    byId("select-all").addEventListener("click", () => this.selectAll());
  }

  get isOpen() { return !this.#wall.hidden; }
  get page() { return Math.floor(this.pictures.index / PAGE); }
  get items() { return this.pictures.items.slice(this.page * PAGE, (this.page + 1) * PAGE); }
  get hasSelection() { return this.#selected.size > 0; }

  // The selected pictures, or the one that has the focus.
  get targets() {
    if (this.hasSelection) return this.items.filter((item) => this.#selected.has(item.id));
    const focused = this.#wall.contains(document.activeElement) ? this.#focus : null;
    return this.items.filter((item) => item.id === focused);
  }

  // Loads what the page needs, and draws it.
  async show() {
    await this.pictures.fill((this.page + 1) * PAGE);
    this.draw();
  }

  // Shows the next page, or the one before. open(start): opens the list at a place.
  async turn(step, open) {
    const { pictures } = this;
    const index = (this.page + step) * PAGE;
    if (index < 0) {
      if (pictures.start > 0) await open(Math.max(0, pictures.start - PAGE));
      return;
    }
    await pictures.fill(index + 1);
    if (index >= pictures.items.length) return;
    pictures.index = index;
    await this.show();
    this.focus(pictures.current?.id);
  }

  draw() {
    const { items } = this;
    const ids = new Set(items.map((item) => item.id));
    for (const id of this.#selected) if (!ids.has(id)) this.#selected.delete(id);
    for (const id of this.#cards.keys()) if (!ids.has(id)) this.#cards.delete(id);
    if (!ids.has(this.#focus)) this.#focus = this.pictures.current?.id ?? items[0]?.id ?? null;
    const cards = items.map((item) => this.#draw(item));
    if (cards.length !== this.#wall.children.length
        || cards.some((card, i) => card !== this.#wall.children[i])) {
      this.#wall.replaceChildren(...cards);
    }
    if (!items.length) {
      this.#wall.append(element("p", { textContent: "No picture is in this list." }));
    }
    this.on.drawn(this.#selected.size);
  }

  #draw(item) {
    let card = this.#cards.get(item.id);
    if (!card) {
      const image = element("img", { src: `/image/${item.id}?size=320`, alt: "", loading: "lazy" });
      const tick = element("span", { className: "tick", ariaHidden: "true" });
      card = element("div", { role: "option", className: "thumb" });
      card.dataset.id = item.id;
      card.append(image, tick, element("p", { className: "label" }),
        element("p", { className: "fact" }), element("p", { className: "path", dir: "auto" }));
      this.#cards.set(item.id, card);
    }
    const [label, fact, path] = card.querySelectorAll("p");
    // The colour says that it is a defect; a reader for the blind has it in words.
    label.textContent = item.label === "anomaly" && item.defect ? item.defect : labelText(item);
    fact.textContent = item.changed || alarmText(item);
    path.textContent = item.name;
    card.title = item.name;
    card.dataset.label = item.label;
    card.dataset.alarm = item.alarm;
    card.ariaLabel = [item.name, fact.textContent, labelText(item)].filter(Boolean).join(", ");
    card.ariaSelected = this.#selected.has(item.id);
    card.tabIndex = item.id === this.#focus ? 0 : -1;
    return card;
  }

  #idOf(target) {
    const card = target.closest?.(".thumb");
    return card ? Number(card.dataset.id) : null;
  }

  #setFocus(id) {
    this.#focus = id;
    for (const [each, card] of this.#cards) card.tabIndex = each === id ? 0 : -1;
  }

  focus(id = this.#focus) {
    if (this.#cards.has(id)) this.#setFocus(id);
    this.#cards.get(this.#focus)?.focus();
  }

  select(ids) {
    this.#selected = new Set(ids);
    this.draw();
  }

  // The numbers stand for other pictures now.
  forget() {
    this.#cards.clear();
    this.#selected.clear();
  }

  selectAll() { this.select(this.items.map((item) => item.id)); }

  #toggle(id) {
    if (!this.#selected.delete(id)) this.#selected.add(id);
    this.#anchor = id;
    this.draw();
  }

  #range(to) {
    const ids = this.items.map((item) => item.id);
    const ends = [ids.indexOf(this.#anchor ?? this.#focus), ids.indexOf(to)].sort((a, b) => a - b);
    this.select(ids.slice(Math.max(0, ends[0]), ends[1] + 1));
  }

  #click(event) {
    const id = this.#idOf(event.target);
    if (id === null) return;
    if (event.shiftKey) this.#range(id);
    else if (event.ctrlKey || event.metaKey || event.target.closest(".tick")) this.#toggle(id);
    else return void this.on.open(id);
    this.focus(id);
  }

  #key(event) {
    const ids = this.items.map((item) => item.id);
    const i = ids.indexOf(this.#focus);
    const columns = getComputedStyle(this.#wall).gridTemplateColumns.split(" ").length;
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
      Home: -i, End: ids.length - 1 - i,
    };
    if (i < 0) return;
    if (event.key in steps) {
      const id = ids[i + steps[event.key]];
      if (id !== undefined) {
        if (event.shiftKey) {
          this.#anchor ??= this.#focus;
          this.#range(id);
        } else this.#anchor = null;
        this.focus(id);
      }
    } else if (event.key === " ") this.#toggle(this.#focus);
    else if (event.key === "Enter") this.on.open(this.#focus);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) this.selectAll();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
