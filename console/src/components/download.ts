/** Saves tables that a page holds as files, and files of the server as archives. */

import { body, gateway } from "#/api/client";

/** Save rows as a CSV file (RFC 4180); the columns are the members of the first row. */
export function downloadCsv(name: string, rows: readonly Record<string, unknown>[]): void {
  const columns = Object.keys(rows[0] ?? {});
  const lines = [columns, ...rows.map((row) => columns.map((column) => row[column]))];
  download(`${name}.csv`, "text/csv", `${lines.map((line) => line.map(writeCell).join(",")).join("\r\n")}\r\n`);
}

export function downloadJson(name: string, value: unknown): void {
  download(`${name}.json`, "application/json", JSON.stringify(value, null, 2));
}

/** How many files an archive may name. */
export const MAX_ARCHIVE_FILES = 200;

/** Save files as one archive, which the browser writes as it comes; rejects with `ApiError`. */
export async function downloadArchive(files: { artifacts: string[] } | { job: string }): Promise<void> {
  const archive = await body(gateway.POST("/artifacts/archive", { body: files }));
  saveLink(archive.url, "");
}

/** Save what an address returns; without a name, under the name that the server gives. */
export function saveLink(url: string, name: string): void {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

function download(name: string, type: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  saveLink(url, name);
  // The browser has read it by then.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function writeCell(value: unknown): string {
  let text = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : `${value}`;
  // Spreadsheets run cells that begin so as formulas; names come from other people.
  if (/^[=+@\t\r-]/.test(text) && !/^-\d+(\.\d+)?(e-?\d+)?$/i.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
