// The stream of the run, and whether it is alive: a connection may break without a word.

const SILENCE_MS = 15_000;
const LOOK_MS = 1000;
const RETRY_MS = 3000;

export class Connection {
  // `on` holds document(fields), change(fields), problem(sentence, time), state().
  constructor(address, on) {
    this.address = address;
    this.on = on;
    this.isOpen = false;
    this.heard = null; // when anything came last, on this machine's clock
    this.told = null; // when the document was right last, on the server's clock
    this.ahead = 0; // this machine's clock less the server's, in seconds
    this.opened = 0;
    this.open();
    setInterval(() => this.look(), LOOK_MS);
  }

  open() {
    this.source?.close();
    this.opened = Date.now();
    this.source = new EventSource(this.address);
    this.source.addEventListener("document", (e) => this.take(e, (c) => this.on.document(c.fields)));
    this.source.addEventListener("change", (e) => this.take(e, (c) => this.on.change(c.fields)));
    this.source.addEventListener("problem", (e) =>
      this.take(e, (c) => this.on.problem(c.problem, c.time)),
    );
    this.source.addEventListener("alive", (e) => this.take(e, () => {}));
    this.source.addEventListener("error", () => this.lose());
  }

  take(event, action) {
    const content = JSON.parse(event.data);
    this.heard = Date.now();
    this.told = content.time;
    this.ahead = this.heard / 1000 - content.time;
    action(content);
    if (!this.isOpen) {
      this.isOpen = true;
      this.on.state();
    }
  }

  lose() {
    if (this.isOpen) {
      this.isOpen = false;
      this.on.state();
    }
  }

  look() {
    if (Date.now() - Math.max(this.heard ?? 0, this.opened) > SILENCE_MS) {
      this.lose();
      this.open();
    } else if (this.source.readyState === EventSource.CLOSED) {
      this.lose();
      if (Date.now() - this.opened > RETRY_MS) this.open();
    }
  }

  // Seconds since 1970 on the server's clock.
  now() {
    return Date.now() / 1000 - this.ahead;
  }
}
