// The pictures in the order in which they are looked at: a part of the server's list.

import { getJson } from "./api.js";

export const PAGE = 60;

export class Pictures {
  order = "teach";
  show = "unseen";
  items = []; // looked at or still to come, without gaps
  index = 0; // of the present picture; items.length: after the last
  start = 0; // place in the server's list of the first item that came from it in order
  total = 0; // of the list when it was opened
  #ended = false;
  #epoch = 0; // answers to questions from before a change of the list are dropped
  #loading = null;

  // settled(): a promise that resolves when the server knows all labels
  constructor(settled) {
    this.settled = settled;
  }

  get current() { return this.items[this.index] ?? null; }

  // Opens the list at a place.
  async open(start = 0) {
    this.#change();
    this.items = [];
    this.index = 0;
    this.start = start;
    await this.#append(true);
  }

  // Fetches anew what comes after the present picture, as the list has changed.
  async renew(start) {
    this.#change();
    this.items.length = Math.min(this.items.length, this.index + 1);
    for (const item of this.items) item.loose = true;
    this.start = start;
    await this.#append(true);
  }

  // Makes the picture `step` places on the present one. At once if it is loaded; until it is,
  // none is present.
  async move(step) {
    let index = this.index + step;
    if (index < 0 && this.start > 0) {
      await this.#prepend();
      index = this.index + step; // the present picture has moved on
    }
    this.index = Math.max(0, Math.min(index, this.items.length));
    await this.fill(index + 1);
  }

  // Loads more when the end is near.
  async ahead() {
    if (this.index > this.items.length - 15) await this.#append();
  }

  // Returns whether all of the list after the present picture is loaded.
  get ended() { return this.#ended; }

  // Makes this picture the present one.
  async goTo(id) {
    const index = this.items.findIndex((item) => item.id === id);
    if (index >= 0) this.index = index;
    else {
      const item = await getJson(`/api/picture/${id}`);
      this.items.splice(this.index, 0, Object.assign(item, { loose: true }));
    }
  }

  // Fetches these pictures anew; returns false if their numbers now stand for others.
  async update(ids) {
    for (const item of this.items.filter((each) => ids.includes(each.id))) {
      const found = await getJson(`/api/picture/${item.id}`);
      if (found.name !== item.name) return false;
      Object.assign(item, found);
    }
    return true;
  }

  // Loads until there are n items, or the list ends.
  async fill(n) {
    while (this.items.length < n && !this.#ended) if (!(await this.#append())) break;
  }

  #change() {
    this.#epoch += 1;
    this.#ended = false;
    this.#loading = null;
  }

  #append(first = false) {
    if (this.#ended) return Promise.resolve(false);
    this.#loading ??= this.#load(first).finally(() => { this.#loading = null; });
    return this.#loading;
  }

  // Returns whether something was loaded.
  async #load(first) {
    const epoch = this.#epoch;
    await this.settled();
    // Labels may have moved pictures in the server's list. Rather fetch one twice than miss one.
    let offset = this.start + this.items.filter((item) => !item.loose && !item.labelled).length;
    for (;;) {
      const answer = await this.#fetch(offset, PAGE);
      if (epoch !== this.#epoch) return false;
      offset += answer.pictures.length;
      if (first) this.total = answer.total;
      this.#ended = offset >= answer.total || !answer.pictures.length;
      const known = new Set(this.items.map((item) => item.id));
      const added = answer.pictures.filter((item) => !known.has(item.id));
      this.items.push(...added);
      if (added.length || this.#ended) return added.length > 0;
    }
  }

  async #prepend() {
    const epoch = this.#epoch;
    await this.settled();
    const offset = Math.max(0, this.start - PAGE);
    const answer = await this.#fetch(offset, this.start - offset);
    if (epoch !== this.#epoch) return;
    const known = new Set(this.items.map((item) => item.id));
    const added = answer.pictures.filter((item) => !known.has(item.id));
    this.items.unshift(...added);
    this.index += added.length;
    this.start = offset;
  }

  #fetch(offset, limit) {
    const query = new URLSearchParams({ order: this.order, show: this.show, offset, limit });
    return getJson(`/api/pictures?${query}`);
  }
}
