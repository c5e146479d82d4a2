/** Parses a stream of server-sent events. */

import { newMalformed } from "./errors.js";

const MAX_EVENT = 64 * 1024 * 1024;

/** An event as it was sent; `id` is empty if the event has none of its own. */
export interface ServerSentEvent {
  type: string;
  data: string;
  id: string;
}

/** Parses a byte stream, which arrives in arbitrary pieces, into server-sent events. */
export class SseParser {
  /** The seconds that the server asks the client to wait before it connects again. */
  retry = 0;
  readonly #decoder = new TextDecoder();
  readonly #longest: number;
  #line = "";
  #endsWithCr = false;
  #size = 0;
  #type = "";
  #id = "";
  #data: string[] = [];

  constructor(longest = MAX_EVENT) {
    this.#longest = longest;
  }

  /** Add a piece of the stream and yield the events that it completes. */
  *feed(piece: Uint8Array): Generator<ServerSentEvent> {
    let text = this.#decoder.decode(piece, { stream: true });
    if (this.#endsWithCr && text.startsWith("\n")) {
      text = text.slice(1);
      this.#endsWithCr = false;
    }
    if (text) this.#endsWithCr = text.endsWith("\r");
    this.#size += text.length;
    const lines = text.split(/\r\n|\r|\n/);
    const rest = lines.pop() ?? "";
    for (const line of lines) {
      const event = this.#endLine(this.#line + line);
      this.#line = "";
      if (event) yield event;
    }
    this.#line += rest;
    if (this.#size > this.#longest) throw newMalformed("an event of the stream is too large");
  }

  #endLine(line: string): ServerSentEvent | undefined {
    if (line === "") {
      const event = { type: this.#type || "message", data: this.#data.join("\n"), id: this.#id };
      const isEvent = this.#data.length > 0;
      [this.#type, this.#id, this.#data, this.#size] = ["", "", [], 0];
      return isEvent ? event : undefined;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.retry = Number(value) / 1000;
    return undefined;
  }
}
