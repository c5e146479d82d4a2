/** Finds the graph that ComfyUI writes into the text of its PNG files. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MAX_TEXT = 8 * 1024 * 1024;
const MAX_CHUNKS = 10_000;

/** Return the text of the chunk with this keyword, or null if the file is no PNG or has none. */
export async function readPngText(file: Blob, keyword: string): Promise<string | null> {
  const head = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  if (head.length < 8 || SIGNATURE.some((byte, index) => head[index] !== byte)) return null;
  let position = 8;
  for (let count = 0; count < MAX_CHUNKS && position + 8 <= file.size; count += 1) {
    const view = new DataView(await file.slice(position, position + 8).arrayBuffer());
    const length = view.getUint32(0);
    const type = String.fromCharCode(...[4, 5, 6, 7].map((index) => view.getUint8(index)));
    const begin = position + 8;
    if (type === "IEND" || begin + length > file.size) return null;
    if ((type === "tEXt" || type === "iTXt") && length <= MAX_TEXT) {
      const text = await decode(type, new Uint8Array(await file.slice(begin, begin + length).arrayBuffer()), keyword);
      if (text !== null) return text;
    }
    position = begin + length + 4;
  }
  return null;
}

async function decode(type: string, data: Uint8Array<ArrayBuffer>, keyword: string): Promise<string | null> {
  const end = data.indexOf(0);
  if (end < 0 || new TextDecoder("latin1").decode(data.subarray(0, end)) !== keyword) return null;
  if (type === "tEXt") return new TextDecoder("latin1").decode(data.subarray(end + 1));
  const [compressed, method] = [data[end + 1], data[end + 2]];
  const language = data.indexOf(0, end + 3);
  const translated = language < 0 ? -1 : data.indexOf(0, language + 1);
  if (translated < 0) return null;
  const content = data.subarray(translated + 1);
  if (compressed === 0) return new TextDecoder().decode(content);
  return method === 0 ? new TextDecoder().decode(await inflate(content)) : null;
}

/** Inflate with a bound: a few bytes may claim to be gigabytes. */
async function inflate(data: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const reader = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > MAX_TEXT) {
      await reader.cancel();
      throw new RangeError("the text of this PNG is too long");
    }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
