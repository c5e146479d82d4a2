import { useElementSize } from "@mantine/hooks";
import { useMemo } from "react";

import { useStrings } from "#/language";

import { strings } from "../strings";
import { HEADER, layOut, NODE_WIDTH, type PlacedNode, ROW } from "./layout";

const MARGIN = 12;
// Smaller letters could not be read; a wider graph scrolls.
const MIN_SCALE = 0.62;
const LETTER = 6.3;

/** Draws a graph, read-only; the box scrolls where the graph does not fit. */
export function GraphDrawing({ graph, activeNode }: { graph: Record<string, unknown>; activeNode: string | null }) {
  const t = useStrings(strings);
  const { ref, width } = useElementSize();
  const drawing = useMemo(() => layOut(graph), [graph]);
  const [fullWidth, fullHeight] = [drawing.width + 2 * MARGIN, drawing.height + 2 * MARGIN];
  const scale = width === 0 ? MIN_SCALE : Math.min(1, Math.max(MIN_SCALE, width / fullWidth));
  return (
    <div
      ref={ref} tabIndex={0} role="region" aria-label={t.graph} data-active-node={activeNode ?? undefined}
      style={{ overflow: "auto", maxHeight: 520 }}
    >
      <svg
        role="img" aria-label={t.graphLabel(drawing.nodes.length)} width={fullWidth * scale} height={fullHeight * scale}
        viewBox={`${-MARGIN} ${-MARGIN} ${fullWidth} ${fullHeight}`} style={{ display: "block" }}
      >
        {drawing.edges.map(({ from, to, start: [x1, y1], end: [x2, y2] }) => (
          <path
            key={`${from}-${to}-${y2}`} d={`M${x1},${y1} C${x1 + 40},${y1} ${x2 - 40},${y2} ${x2},${y2}`} fill="none"
            stroke="var(--mantine-color-indigo-5)" strokeWidth={1.5} opacity={0.7}
          />
        ))}
        {drawing.nodes.map((node) => <NodeBox key={node.id} node={node} isActive={node.id === activeNode} />)}
      </svg>
    </div>
  );
}

function NodeBox({ node, isActive }: { node: PlacedNode; isActive: boolean }) {
  return (
    <g transform={`translate(${node.x},${node.y})`} fontSize={11} fill="var(--mantine-color-text)">
      <title>{`${node.id}: ${node.title}\n${node.rows.map((row) => row.text).join("\n")}`.slice(0, 2_000)}</title>
      <rect
        width={NODE_WIDTH} height={node.height} rx={6} fill="var(--mantine-color-body)"
        stroke={isActive ? "var(--mantine-primary-color-filled)" : "var(--mantine-color-dimmed)"}
        strokeWidth={isActive ? 3 : 1}
      />
      <text x={10} y={17} fontSize={12} fontWeight={600}>{cut(node.title, NODE_WIDTH - 30, 7)}</text>
      <text x={10} y={31} fontSize={10} fill="var(--mantine-color-dimmed)">{cut(`${node.id} · ${node.type}`, NODE_WIDTH - 20)}</text>
      {node.rows.map((row, index) => (
        <g key={index} transform={`translate(0,${HEADER + (index + 0.5) * ROW})`}>
          {row.isLink && <circle r={3.5} fill="var(--mantine-color-indigo-5)" />}
          <text x={10} y={4} fill={row.isLink ? "var(--mantine-color-dimmed)" : undefined}>{cut(row.text, NODE_WIDTH - 20)}</text>
        </g>
      ))}
    </g>
  );
}

/** Return a text that is about as wide as the space for it; SVG does not cut. */
function cut(text: string, width: number, letter = LETTER): string {
  let left = width;
  for (let index = 0; index < text.length; index += 1) {
    left -= text.charCodeAt(index) > 0x2e80 ? 1.8 * letter : letter;
    if (left < 0) return `${text.slice(0, Math.max(1, index - 1))}…`;
  }
  return text;
}
