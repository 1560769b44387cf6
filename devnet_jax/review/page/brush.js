// A mask painted over the picture, in its own pixels at any zoom.

import { request } from "./api.js";
import { byId } from "./dom.js";
import { greyPng } from "./png.js";

export class Brush {
  item = null; // the picture that is painted
  #canvas = byId("mask");
  #context = this.#canvas.getContext("2d", { willReadFrequently: true });
  #size = byId("brush-size");
  #erasing = false;
  #changed = false;
  #loading = null;
  #last = null; // the stroke's last point
  #at = { x: 0.5, y: 0.5 }; // of the brush, as shares of the picture

  // save(item, blob or null): sends a mask
  constructor(viewer, save) {
    this.viewer = viewer;
    this.save = save;
    byId("brush-paint").addEventListener("click", () => this.erase(false));
    byId("brush-erase").addEventListener("click", () => this.erase(true));
    byId("brush-clear").addEventListener("click", () => this.#clear());
    this.#size.addEventListener("input", () => this.#drawCursor());
    viewer.stage.addEventListener("placed", () => this.#drawCursor());
  }

  // item: a picture with its width and height
  async open(item) {
    const canvas = this.#canvas;
    this.item = item;
    this.#changed = false;
    canvas.width = item.width;
    canvas.height = item.height;
    this.#size.max = Math.ceil(Math.max(item.width, item.height) / 3);
    this.#size.value = Math.max(4, Math.round(Math.max(item.width, item.height) / 25));
    this.#at = { x: 0.5, y: 0.5 };
    this.#show(true);
    this.erase(false);
    this.viewer.tool = this;
    this.#loading = item.mask ? this.#load(item) : null;
    await this.#loading;
  }

  // Saves what has changed, and closes.
  async close() {
    if (!this.item) return;
    await this.store();
    this.item = null;
    this.viewer.tool = null;
    this.#show(false);
  }

  #show(shown) {
    for (const id of ["mask", "brush", "cursor"]) byId(id).hidden = !shown;
    byId("brush-toggle").setAttribute("aria-pressed", shown);
    this.viewer.stage.classList.toggle("painting", shown);
    if (shown) this.#drawCursor();
  }

  async #load(item) {
    const response = await request(`/mask/${item.id}`, { cache: "no-store" });
    const image = await createImageBitmap(await response.blob());
    if (this.item !== item) return;
    const context = this.#context;
    context.drawImage(image, 0, 0, item.width, item.height);
    const pixels = context.getImageData(0, 0, item.width, item.height);
    const colour = getComputedStyle(this.#canvas).color.match(/\d+/g).map(Number);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const inside = pixels.data[i] > 127;
      pixels.data.set([colour[0], colour[1], colour[2], inside ? 255 : 0], i);
    }
    context.putImageData(pixels, 0, 0);
  }

  // Sends the mask if it has changed; an empty one removes it.
  async store() {
    const { item } = this;
    if (!item || !this.#changed) return false;
    await this.#loading;
    this.#changed = false;
    const { width, height } = this.#canvas;
    const { data } = this.#context.getImageData(0, 0, width, height);
    const grey = new Uint8Array(width * height);
    let empty = true;
    for (let i = 0; i < grey.length; i++) {
      if (data[4 * i + 3] < 128) continue; // the edge of a stroke is smooth
      grey[i] = 255;
      empty = false;
    }
    if (empty && !item.mask) return false;
    item.mask = !empty;
    this.save(item, empty ? null : await greyPng(grey, width, height));
    return true;
  }

  erase(on) {
    this.#erasing = on;
    byId("brush-paint").setAttribute("aria-pressed", !on);
    byId("brush-erase").setAttribute("aria-pressed", on);
  }

  toggleErase() { this.erase(!this.#erasing); }

  resize(factor) {
    const size = Number(this.#size.value);
    this.#size.value = factor > 1 ? Math.max(size + 1, size * factor) : size * factor;
    this.#drawCursor();
  }

  #clear() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#changed = true;
  }

  // Without a pointer: moves the brush by half its size, and paints where it is.
  step(dx, dy) {
    const step = Math.max(1, Number(this.#size.value) / 2);
    const within = (value) => Math.min(1, Math.max(0, value));
    this.hover({
      x: within(this.#at.x + dx * step / this.item.width),
      y: within(this.#at.y + dy * step / this.item.height),
    });
  }

  dab() {
    this.down(this.#at);
    this.up();
  }

  hover(point) {
    this.#at = point;
    this.#drawCursor();
  }

  down(point) {
    this.#last = point;
    this.move(point);
  }

  move(point) {
    const context = this.#context;
    const { width, height } = this.#canvas;
    context.globalCompositeOperation = this.#erasing ? "destination-out" : "source-over";
    context.strokeStyle = getComputedStyle(this.#canvas).color;
    context.lineWidth = Number(this.#size.value);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(this.#last.x * width, this.#last.y * height);
    context.lineTo(point.x * width + 0.01, point.y * height); // a line of no length is not drawn
    context.stroke();
    context.globalCompositeOperation = "source-over";
    this.#last = point;
    this.#changed = true;
  }

  up() { this.#last = null; }

  #drawCursor() {
    if (!this.item) return;
    const layers = this.viewer.layers.getBoundingClientRect();
    const stage = this.viewer.stage.getBoundingClientRect();
    const size = Number(this.#size.value) * layers.width / this.item.width;
    const { style } = byId("cursor");
    style.width = style.height = `${size}px`;
    const x = layers.left - stage.left - this.viewer.stage.clientLeft + this.#at.x * layers.width;
    const y = layers.top - stage.top - this.viewer.stage.clientTop + this.#at.y * layers.height;
    style.transform = `translate(${x - size / 2}px, ${y - size / 2}px)`;
  }
}
