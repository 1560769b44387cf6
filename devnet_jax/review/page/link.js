// The connection to the server: what it says about its state, and whether it is there.

import { Lost, Outbox, Refused, getJson } from "./api.js";
import { byId, pause, plural, say } from "./dom.js";

const STOPPED = "The review has stopped. Start the same command again; this page goes on by itself.";

export class Link {
  state = null;
  connected = true;
  #asked = 0; // number of the newest question for the state
  #taken = 0; // number of the question whose answer is in force
  #version = 0; // of the labels that this page knows
  #returned = false; // the connection, since the last state: anything may have changed

  // on: {stateCame(state before, whether others have labelled), takenBack(ids),
  //      refused(entry, error), drawState()}
  constructor(on) {
    this.on = on;
    this.outbox = new Outbox({
      answered: (entry, answer) => this.#answered(entry, answer),
      refused: (entry, error) => {
        this.#found();
        on.refused(entry, error);
      },
      lost: (error) => this.lost(error),
      changed: () => on.drawState(),
    });
  }

  // blob: a PNG, or null to remove the mask
  sendMask(item, blob, reviewer) {
    const path = `/mask/${item.id}?${new URLSearchParams({ reviewer })}`;
    const names = { [item.id]: item.name };
    this.outbox.add({ method: blob ? "PUT" : "DELETE", path, type: "image/png", body: blob, names });
    say(blob ? "The mask is saved." : "The mask is removed.");
  }

  async start() {
    this.outbox.start();
    for (;;) {
      const number = ++this.#asked, { sent } = this.outbox;
      try {
        const state = await getJson("/api/state");
        this.#found();
        // While labels of ours are on their way, a new version may come from them.
        const busy = this.outbox.sent !== sent || this.outbox.size > 0;
        await this.#take(state, number, busy ? null : 0);
      } catch (error) {
        this.lost(error);
      }
      await pause(this.state?.working ? 300 : 1000);
    }
  }

  // ours: the most by which the version has risen through us; null: not known
  async #take(state, number, ours) {
    if (number < this.#taken) return; // an older question, answered late
    this.#taken = number;
    const before = this.state;
    this.state = state;
    const risen = state.version - this.#version;
    const others = before !== null && (this.#returned
      || (ours !== null && ![0, Math.min(1, ours), ours].includes(risen)));
    this.#returned = false;
    if (ours !== null || before === null) this.#version = state.version;
    await this.on.stateCame(before, others);
  }

  async #answered(entry, answer) {
    this.#found();
    if (!answer) return;
    let ours = entry.path === "/api/label" ? JSON.parse(entry.body).ids.length : 1;
    if (["/api/learn", "/api/finish"].includes(entry.path)) ours = 0;
    const number = ++this.#asked;
    if (entry.path === "/api/undo") {
      this.on.takenBack(answer.ids);
      ours = Math.max(1, answer.ids.length);
      answer = answer.state;
    }
    if (answer?.version === undefined) return;
    await this.#take(answer, number, ours).catch((error) => this.lost(error));
  }

  lost(error) {
    if (!(error instanceof Refused || error instanceof Lost)) throw error; // a fault of ours
    this.connected = false;
    const text = error instanceof Refused ? error.message : STOPPED;
    const n = this.outbox.size;
    const all = n ? `${text} ${plural(n, "answer")} will be sent then.` : text;
    if (byId("lost").textContent !== all) byId("lost").textContent = all;
    byId("lost").hidden = false;
    this.on.drawState();
  }

  #found() {
    if (this.connected) return;
    this.connected = true;
    this.#returned = true;
    byId("lost").hidden = true;
    say("The review is there again.");
    this.outbox.wake();
    this.on.drawState();
  }
}
