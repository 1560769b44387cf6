// Requests to the review's server, and the queue of labels that wait for it.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
  // The server may answer otherwise later: the address is out of date, or it is in trouble.
  get passing() { return this.status === 403 || this.status >= 500; }
}

// There is no answer.
export class Lost extends Error {}

const PATIENCE = 30_000; // milliseconds

export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), ...options });
  } catch (error) {
    throw new Lost(error.message);
  }
  if (response.ok) return response;
  let message = `The review answers with error ${response.status}.`;
  try {
    message = (await response.json()).error || message;
  } catch {
    // no JSON: the status must do
  }
  throw new Refused(response.status, message);
}

// Returns the JSON of an answer; null if it has none.
async function json(response) {
  if (!response.headers.get("Content-Type")?.includes("json")) return null;
  try {
    return await response.json();
  } catch (error) {
    throw new Lost(error.message); // the server ended in the midst of it
  }
}

export const getJson = async (path) => json(await request(path));

const STORED = "devnet-review-queue";

// Sends entries {method, path, type, body, names} one after the other; each until it is answered.
// names: the names of the pictures by their numbers, which another start may have changed.
export class Outbox {
  #entries = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  #sending = false;
  #doubtful = this.#entries.length > 0; // the server may be another one, or know some of them
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

  post(path, body = {}, names = {}) {
    const type = "application/json";
    this.add({ method: "POST", path, type, body: JSON.stringify(body), names });
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
        const known = this.#doubtful && await isKnown(entry);
        answer = known ? null : await deliver(entry);
      } catch (error) {
        failure = error;
      }
      // Sent twice, it would take back two labels.
      const isOver = failure instanceof Refused ? !failure.passing : entry.path === "/api/undo";
      if (failure && !isOver) {
        entry.tried = this.#doubtful = true;
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
      if (!failure) this.on.answered(entry, answer);
      else if (failure instanceof Refused) this.on.refused(entry, failure);
      else this.on.refused(entry, new Error("The label could not be taken back: the review has stopped."));
    }
    this.#sending = this.#doubtful = false;
    for (const done of this.#idle.splice(0)) done();
  }
}

async function deliver(entry) {
  const { method, path, type, body } = entry;
  return json(await request(path, { method, headers: { "Content-Type": type }, body: body ?? undefined }));
}

// Returns whether the server has the label of an entry already. Refuses one whose pictures have
// other numbers now.
async function isKnown(entry) {
  let known = entry.path === "/api/label";
  const wanted = known ? JSON.parse(entry.body) : {};
  for (const [id, name] of Object.entries(entry.names ?? {})) {
    const found = await getJson(`/api/picture/${id}`);
    if (found.name !== name) {
      throw new Refused(409, `The pictures have changed: your answer for ${name} is not kept. Look at it again.`);
    }
    known &&= found.label === wanted.label && found.defect === wanted.defect;
  }
  return known;
}
