import { Code } from "@mantine/core";

// Enough for a reader; the API returns the rest.
const MAX_CHARACTERS = 200_000;

/** Shows a value as indented JSON, in a box that scrolls. */
export function JsonBlock({ value, label }: { value: unknown; label: string }) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return (
    <Code block mah={360} style={{ overflow: "auto" }} tabIndex={0} role="region" aria-label={label}>
      {text.length > MAX_CHARACTERS ? `${text.slice(0, MAX_CHARACTERS)}…` : text}
    </Code>
  );
}
