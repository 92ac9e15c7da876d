// One WebSocket that comes back: it waits longer after every failure, and says what it does.

const FIRST = 500; // milliseconds before the second try
const LONGEST = 15_000;
const FULL = 1 << 20; // bytes that may wait in the browser before pictures and sound are left out

export class Socket {
  /**
   * @param address function that returns where to connect
   * @param hello function that returns the first message of every connection
   * @param hear called with every message
   * @param tell called with {state: "open" | "waiting" | "connecting" | "closed", seconds}
   */
  constructor({ address, hello, hear, tell }) {
    Object.assign(this, { address, hello, hear, tell });
    this.tries = 0;
    this.timer = 0;
    this.closed = false;
    this.left = 0; // messages left out because too much waited
    this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    this.tell({ state: "connecting" });
    const socket = new WebSocket(this.address());
    this.socket = socket;
    socket.onopen = () => {
      this.send(this.hello());
    };
    socket.onmessage = (event) => {
      if (this.socket !== socket) return;
      let message;
      try {
        message = JSON.parse(event.data);
      } catch {
        return; // not ours
      }
      if (this.tries >= 0 && message.type !== "error") {
        this.tries = 0;
        this.tell({ state: "open" });
      }
      this.hear(message);
    };
    socket.onclose = () => {
      if (this.socket === socket && !this.closed) this.again();
    };
  }

  again() {
    const wait = Math.min(FIRST * 2 ** this.tries, LONGEST) * (0.8 + 0.4 * Math.random());
    this.tries += 1;
    this.tell({ state: "waiting", seconds: wait / 1000 });
    this.timer = setTimeout(() => this.connect(), wait);
  }

  /** Connect at once, if the connection is waited for. */
  hurry() {
    if (!this.closed && this.socket.readyState === WebSocket.CLOSED) this.connect();
  }

  get open() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  /** Send a message; return whether it went out. */
  send(message) {
    if (!this.open) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Send a picture or sound, unless too much waits already: what is live is never queued. */
  sendLive(message) {
    if (this.open && this.socket.bufferedAmount < FULL) return this.send(message);
    this.left += 1;
    return false;
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.socket.close();
    this.tell({ state: "closed" });
  }
}
