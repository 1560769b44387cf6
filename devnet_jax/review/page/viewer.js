// One picture, large: loading ahead, zoom, pan, and the map over it.

import { byId } from "./dom.js";

const SIZE = 1600; // longest side that is loaded first; the rest comes with the zoom
const KEPT = 12; // pictures kept in memory
const LARGEST = 40; // zoom

export class Viewer {
  tool = null; // {down(point), move(point), up()} in pixels of the picture: the brush
  ready = null; // number of the picture that is seen
  mapOn = false;
  #images = new Map();
  #item = null;
  #generation = 0;
  #image = null;
  #zoom = 1;
  #x = 0;
  #y = 0;
  #width = 0; // of the stage
  #height = 0;
  #pointers = new Map();
  stage = byId("stage");
  layers = byId("layers");

  constructor() {
    const { stage } = this;
    new ResizeObserver(() => this.#resize()).observe(stage);
    byId("map").addEventListener("error", (event) => {
      event.target.hidden = true;
      event.target.removeAttribute("src"); // asked for again when it is drawn
    });
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), event);
    }, { passive: false });
    stage.addEventListener("pointerdown", (event) => this.#down(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => this.#up(event));
    }
    stage.addEventListener("dblclick", (event) => {
      if (this.tool || event.target.closest("button")) return;
      if (this.#zoom > 1) this.fit();
      else this.zoomBy(3, event);
    });
  }

  // Shows a picture of the list, or null.
  async show(item, generation) {
    const changed = item?.id !== this.#item?.id;
    this.#item = item;
    this.#generation = generation;
    if (changed || this.ready !== item?.id) {
      this.ready = null;
      delete this.stage.dataset.ready;
      this.#image?.remove();
      this.#image = null;
      this.notice("");
      this.#drawMap();
      if (item) await this.#showImage(item);
    } else this.#drawMap();
  }

  async #showImage(item) {
    const image = this.#load(item.id);
    const slow = setTimeout(() => this.#item === item && this.notice("Loading the picture"), 250);
    let readable = true;
    await image.decode().catch(() => { readable = false; });
    clearTimeout(slow);
    if (this.#item?.id !== item.id) return;
    this.ready = item.id;
    this.stage.dataset.ready = item.id;
    this.notice(readable ? "" : "This picture cannot be read. Skip it, or look at the file itself.");
    if (!readable) return;
    this.#image?.remove();
    this.#image = image;
    image.alt = "";
    this.layers.prepend(image);
    this.fit();
    this.#drawMap();
  }

  #load(id) {
    let image = this.#images.get(id);
    if (image && image.complete && !image.naturalWidth) image = null; // failed: try again
    if (!image) {
      image = new Image();
      image.className = "layer";
      image.draggable = false;
      image.src = `/image/${id}?size=${SIZE}`;
    }
    this.#images.delete(id); // the last used is the last in the map
    this.#images.set(id, image);
    const [oldest] = this.#images.keys();
    if (this.#images.size > KEPT) this.#images.delete(oldest);
    return image;
  }

  // The numbers stand for other pictures now.
  forget() {
    this.#images.clear();
    this.ready = null;
  }

  prefetch(ids) {
    for (const id of ids) this.#load(id).decode().catch(() => {});
  }

  notice(text) {
    byId("notice").textContent = text;
    byId("notice").hidden = !text;
  }

  // The map of a picture without a score does not exist yet.
  #drawMap() {
    const map = byId("map"), item = this.#item;
    const shown = this.mapOn && this.#image !== null && item !== null && item.score !== null;
    if (shown) {
      const address = `/map/${item.id}?g=${this.#generation}`;
      if (map.getAttribute("src") !== address) map.src = address;
    }
    map.hidden = !shown;
  }

  toggleMap() {
    this.mapOn = !this.mapOn;
    byId("map-toggle").setAttribute("aria-pressed", this.mapOn);
    this.#drawMap();
  }

  fit() {
    this.#zoom = 1;
    if (!this.#image) return;
    const { clientWidth, clientHeight } = this.stage;
    const { naturalWidth, naturalHeight } = this.#image;
    const scale = Math.min(clientWidth / naturalWidth, clientHeight / naturalHeight);
    this.layers.style.width = `${naturalWidth * scale}px`;
    this.layers.style.height = `${naturalHeight * scale}px`;
    [this.#width, this.#height] = [clientWidth, clientHeight];
    this.#place();
  }

  // Keeps the zoom, and the middle, when the window changes.
  #resize() {
    const zoom = this.#zoom, { clientWidth, clientHeight } = this.stage;
    if (!this.#image || !clientWidth) return; // hidden behind the wall
    const box = this.layers.getBoundingClientRect(), stage = this.stage.getBoundingClientRect();
    const x = (stage.left + this.#width / 2 - box.left) / box.width;
    const y = (stage.top + this.#height / 2 - box.top) / box.height;
    this.fit();
    if (zoom === 1) return;
    this.#zoom = zoom;
    this.#x = clientWidth / 2 - x * this.layers.offsetWidth * zoom;
    this.#y = clientHeight / 2 - y * this.layers.offsetHeight * zoom;
    this.#place();
  }

  // Enlarges about a point of the window; about the middle without one.
  zoomBy(factor, at = null) {
    if (!this.#image) return;
    const box = this.stage.getBoundingClientRect();
    const x = at ? at.clientX - box.left : box.width / 2;
    const y = at ? at.clientY - box.top : box.height / 2;
    const zoom = Math.min(LARGEST, Math.max(1, this.#zoom * factor));
    if (zoom === 1) return this.fit();
    this.#x = x - (x - this.#x) * zoom / this.#zoom;
    this.#y = y - (y - this.#y) * zoom / this.#zoom;
    this.#zoom = zoom;
    this.#place();
    if (zoom > 1.5) this.#sharpen();
  }

  pan(dx, dy) {
    this.#x += dx;
    this.#y += dy;
    this.#place();
  }

  // Moves the layers; part of the picture always stays in view.
  #place() {
    const { clientWidth, clientHeight } = this.stage;
    const width = this.layers.offsetWidth * this.#zoom;
    const height = this.layers.offsetHeight * this.#zoom;
    const within = (value, size, room) => (size <= room
      ? (room - size) / 2 : Math.min(0, Math.max(room - size, value)));
    this.#x = within(this.#x, width, clientWidth);
    this.#y = within(this.#y, height, clientHeight);
    this.layers.style.transform = `translate(${this.#x}px, ${this.#y}px) scale(${this.#zoom})`;
    this.stage.classList.toggle("zoomed", this.#zoom > 1);
    this.layers.classList.toggle("pixels", width > 4 * (this.#image?.naturalWidth ?? Infinity));
    this.stage.dispatchEvent(new Event("placed"));
  }

  // Loads all pixels of a large picture.
  async #sharpen() {
    const image = this.#image, item = this.#item;
    const longest = Math.max(image.naturalWidth, image.naturalHeight);
    if (image.dataset.full || longest < SIZE) return;
    image.dataset.full = "coming";
    const full = Object.assign(new Image(), { src: `/image/${item.id}`, className: "layer", alt: "" });
    full.draggable = false;
    full.dataset.full = "yes";
    try {
      await full.decode();
    } catch {
      delete image.dataset.full;
      return;
    }
    this.#images.set(item.id, full);
    if (this.#image !== image) return;
    image.replaceWith(full);
    this.#image = full;
    this.#place();
  }

  // The place in the picture, as shares of its width and height.
  share(event) {
    const box = this.layers.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  #down(event) {
    if (event.target.closest("button") || !this.#image) return;
    this.stage.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, event);
    const paints = this.tool && event.button === 0 && !event.shiftKey && this.#pointers.size === 1;
    if (paints) this.tool.down(this.share(event));
    else this.tool?.up();
    this.#painting = paints;
  }

  #painting = false;

  #move(event) {
    this.tool?.hover(this.share(event));
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    this.#pointers.set(event.pointerId, event);
    if (this.#painting) {
      for (const each of event.getCoalescedEvents?.() ?? [event]) this.tool?.move(this.share(each));
      return;
    }
    const others = [...this.#pointers.values()].filter((each) => each.pointerId !== event.pointerId);
    if (others.length) {
      const far = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      const middle = {
        clientX: (event.clientX + others[0].clientX) / 2,
        clientY: (event.clientY + others[0].clientY) / 2,
      };
      this.zoomBy(far(event, others[0]) / Math.max(1, far(before, others[0])), middle);
    }
    const share = 1 / this.#pointers.size;
    this.pan((event.clientX - before.clientX) * share, (event.clientY - before.clientY) * share);
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    if (this.#painting) this.tool?.up();
    this.#painting = false;
  }
}
