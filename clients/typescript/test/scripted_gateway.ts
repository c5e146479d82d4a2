/** A server with real sockets that gives scripted answers, breaks connections, and can be down. */

import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Client, type ClientOptions } from "moyin-client";

/** An answer; `pieces` are chunks of a stream, `breaks` resets the connection after them. */
export interface Reply {
  status?: number;
  headers?: Record<string, string>;
  body?: string | Uint8Array;
  pieces?: (string | Uint8Array)[];
  breaks?: boolean;
  /** The stream stays open. */
  hangs?: boolean;
}

export interface Seen {
  method: string;
  path: string;
  query: Record<string, string>;
  headers: Record<string, string | string[] | undefined>;
  body: Buffer;
}

/** The request arrives, and its answer is lost. */
export const LOST: Reply = { status: 0, breaks: true };

export function answer(value: unknown, status = 200): Reply {
  return { status, headers: { "content-type": "application/json" }, body: JSON.stringify(value) };
}

/** An error as docs/reference/errors.md describes it. */
export function problem(status: number, code: string, more: object = {}, headers = {}): Reply {
  const body = {
    type: "about:blank", title: "Some Error", status, detail: `wrong: ${code}`, instance: "/jobs", code,
    request_id: "req_7", ...more,
  };
  return { status, headers: { "content-type": "application/problem+json", ...headers }, body: JSON.stringify(body) };
}

export function stream(pieces: string[], more: Reply = {}): Reply {
  return { headers: { "content-type": "text/event-stream" }, pieces, ...more };
}

export function event(type: string, data: unknown, id = ""): string {
  return `${id && `id: ${id}\n`}event: ${type}\ndata: ${JSON.stringify(data)}\n\n`;
}

/** Answers each route with its next scripted reply, and keeps the requests. */
export class ScriptedGateway {
  readonly seen: Seen[] = [];
  readonly #replies = new Map<string, Reply[]>();
  #server!: Server;
  #port = 0;

  static async start(): Promise<ScriptedGateway> {
    const gateway = new ScriptedGateway();
    await gateway.listen();
    return gateway;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  newClient(options: Partial<ClientOptions> = {}): Client {
    const retry = { tries: 4, firstPause: 0.01, longestPause: 0.02 };
    return new Client({ url: this.url, apiKey: "key-1", retry, ...options });
  }

  script(method: string, path: string, ...replies: Reply[]): void {
    const route = `${method} ${path}`;
    this.#replies.set(route, [...(this.#replies.get(route) ?? []), ...replies]);
  }

  /** Listen, after a stop at the same port as before. */
  async listen(): Promise<void> {
    this.#server = createServer((request, response) => void this.#answer(request, response));
    this.#server.listen(this.#port, "127.0.0.1");
    await once(this.#server, "listening");
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    await once(this.#server, "close");
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    const address = new URL(request.url ?? "", this.url);
    const { method = "", headers } = request;
    this.seen.push({
      method, headers, path: address.pathname, query: Object.fromEntries(address.searchParams),
      body: Buffer.concat(pieces),
    });
    const reply = this.#replies.get(`${method} ${address.pathname}`)?.shift() ?? problem(404, "route_not_found");
    if (reply.status !== 0) {
      response.writeHead(reply.status ?? 200, reply.headers);
      if (reply.body !== undefined) response.write(reply.body);
      for (const piece of reply.pieces ?? []) await new Promise((sent) => response.write(piece, sent));
    }
    if (reply.breaks) request.socket.resetAndDestroy();
    else if (!reply.hangs) response.end();
  }
}
