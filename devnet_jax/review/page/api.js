// Requests to the review's server, and the queue of labels that wait for it.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
  // The server may answer otherwise later: the address is out of date, or it is in trouble.
  get passing() { return this.status === 403 || this.status >= 500; }
}

export async function request(path, options = {}) {
  const response = await fetch(path, options); // throws TypeError without a connection
  if (response.ok) return response;
  let message = `The review answers with error ${response.status}.`;
  try {
    message = (await response.json()).error || message;
  } catch {
    // no JSON: the status must do
  }
  throw new Refused(response.status, message);
}

export const getJson = async (path) => (await request(path)).json();

const STORED = "devnet-review-queue";

// Sends entries {method, path, type, body} one after the other; each until it is answered.
export class Outbox {
  #entries = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  #sending = false;
  #wake = () => {};
  #idle = [];
  sent = 0; // rises with each entry that was answered

  // on: {answered(entry, json), refused(entry, error), lost(error), changed()}
  constructor(on) {
    this.on = on;
  }

  get size() { return this.#entries.length; }

  start() { this.#send(); }

  add(entry) {
    this.#entries.push(entry);
    this.#store();
    this.#send();
  }

  post(path, body = {}) {
    this.add({ method: "POST", path, type: "application/json", body: JSON.stringify(body) });
  }

  // Takes the last entry back if it waits, is no undo itself, and is not on its way.
  takeBack(path) {
    const entry = this.#entries.at(-1);
    if (entry?.path !== path || entry.tried || (this.#sending && this.#entries.length === 1)) {
      return null;
    }
    this.#entries.pop();
    this.#store();
    return entry;
  }

  // Resolves when nothing waits.
  idle() {
    return this.size ? new Promise((done) => this.#idle.push(done)) : Promise.resolve();
  }

  // Tries again now.
  wake() { this.#wake(); }

  // A reload of this tab keeps what waits, except masks, which are no text.
  #store() {
    const texts = this.#entries.filter((entry) => typeof entry.body === "string");
    sessionStorage.setItem(STORED, JSON.stringify(texts));
    this.on.changed();
  }

  async #send() {
    if (this.#sending) return;
    this.#sending = true;
    while (this.#entries.length) {
      const entry = this.#entries[0];
      let answer = null, failure = null;
      try {
        const headers = { "Content-Type": entry.type };
        const response = await request(entry.path, {
          method: entry.method, headers, body: entry.body ?? undefined,
        });
        const isJson = response.headers.get("Content-Type")?.includes("json");
        answer = isJson ? await response.json() : null;
      } catch (error) {
        failure = error;
      }
      if (failure && !(failure instanceof Refused && !failure.passing)) {
        entry.tried = true;
        this.on.lost(failure);
        await new Promise((done) => {
          this.#wake = done;
          setTimeout(done, 1000);
        });
        continue;
      }
      this.#entries.shift();
      this.sent += 1;
      this.#store();
      if (failure) this.on.refused(entry, failure);
      else this.on.answered(entry, answer);
    }
    this.#sending = false;
    for (const done of this.#idle.splice(0)) done();
  }
}
