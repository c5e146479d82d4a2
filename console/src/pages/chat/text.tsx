import { Box, Code, CopyButton, UnstyledButton } from "@mantine/core";

import { useStrings } from "#/language";

import { strings } from "./strings";

const FENCE = /```([^\n`]*)\n([\s\S]*?)(?:\n?```|$)/g;

interface Piece {
  text: string;
  /** The name after the fence, perhaps empty; `undefined` for text that is no code. */
  language?: string;
}

export function splitCode(text: string): Piece[] {
  const pieces: Piece[] = [];
  let end = 0;
  for (const match of text.matchAll(FENCE)) {
    if (match.index > end) pieces.push({ text: text.slice(end, match.index).trim() });
    pieces.push({ text: match[2] ?? "", language: (match[1] ?? "").trim() });
    end = match.index + match[0].length;
  }
  if (end < text.length) pieces.push({ text: text.slice(end).trim() });
  return pieces.filter((piece) => piece.text !== "");
}

/** Shows a model's or a person's text as it is: code in blocks, the rest with its line breaks. */
export function MessageText({ text }: { text: string }) {
  return splitCode(text).map((piece, place) =>
    piece.language === undefined
      ? <Box key={place} fz="sm" my={4} style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere" }}>{piece.text}</Box>
      : <CodeBlock key={place} text={piece.text} language={piece.language} />
  );
}

export function CodeBlock({ text, language }: { text: string; language: string }) {
  const t = useStrings(strings);
  return (
    <Box my="xs">
      <Box fz="xs" c="dimmed" display="flex" style={{ justifyContent: "space-between" }}>
        <span>{language || t.code}</span>
        <CopyButton value={text}>
          {({ copied, copy }) => <UnstyledButton fz="xs" onClick={copy}>{copied ? t.copied : t.copy}</UnstyledButton>}
        </CopyButton>
      </Box>
      <Code block tabIndex={0} style={{ overflowX: "auto" }}>{text}</Code>
    </Box>
  );
}
