/** Lays out a graph in ComfyUI's API format in layers from left to right; no browser is needed. */

export interface PlacedNode {
  id: string;
  title: string;
  type: string;
  /** Names of the inputs that come from other nodes, then `name: value` of the others. */
  rows: { text: string; isLink: boolean }[];
  x: number;
  y: number;
  height: number;
}

export interface Edge {
  from: string;
  to: string;
  start: readonly [x: number, y: number];
  end: readonly [x: number, y: number];
}

export interface Drawing {
  nodes: PlacedNode[];
  edges: Edge[];
  width: number;
  height: number;
}

interface GraphNode extends Omit<PlacedNode, "x" | "y"> {
  links: { source: string; row: number }[];
}

export const NODE_WIDTH = 210;
export const HEADER = 40;
export const ROW = 16;
const COLUMN_GAP = 70;
const ROW_GAP = 22;
const MAX_ROWS = 9;
const SWEEPS = 4;

/** Return the drawing of a graph; entries that are no nodes are left out. */
export function layOut(graph: Record<string, unknown>): Drawing {
  const nodes = readNodes(graph);
  const layers = orderLayers(nodes, assignLayers(nodes));
  const heights = layers.map((layer) => layer.reduce((sum, node) => sum + node.height + ROW_GAP, -ROW_GAP));
  const height = Math.max(0, ...heights);
  const placed = new Map<string, PlacedNode>();
  layers.forEach((layer, index) => {
    let y = (height - heights[index]!) / 2;
    for (const { links: _, ...node } of layer) {
      placed.set(node.id, { ...node, x: index * (NODE_WIDTH + COLUMN_GAP), y });
      y += node.height + ROW_GAP;
    }
  });
  const edges: Edge[] = [];
  for (const node of nodes.values()) {
    const target = placed.get(node.id)!;
    for (const { source, row } of node.links) {
      const origin = placed.get(source)!;
      edges.push({
        from: source, to: node.id,
        start: [origin.x + NODE_WIDTH, origin.y + HEADER / 2],
        end: [target.x, target.y + HEADER + (row + 0.5) * ROW],
      });
    }
  }
  const width = Math.max(0, layers.length * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP);
  return { nodes: [...placed.values()], edges, width, height };
}

function readNodes(graph: Record<string, unknown>): Map<string, GraphNode> {
  const nodes = new Map<string, GraphNode>();
  const isNode = (id: unknown) => typeof id === "string" && Object.hasOwn(graph, id) && isRecord(graph[id]);
  for (const [id, value] of Object.entries(graph)) {
    if (!isRecord(value)) continue;
    const inputs = Object.entries(isRecord(value.inputs) ? value.inputs : {});
    const linked = inputs.filter(([, input]) => Array.isArray(input) && isNode(input[0]));
    const rows = [
      ...linked.map(([name]) => ({ text: name, isLink: true })),
      ...inputs.filter((input) => !linked.includes(input))
        .map(([name, input]) => ({ text: `${name}: ${describe(input)}`, isLink: false })),
    ].slice(0, Math.max(MAX_ROWS, linked.length));
    const type = typeof value.class_type === "string" ? value.class_type : "?";
    const title = isRecord(value._meta) && typeof value._meta.title === "string" ? value._meta.title : type;
    const links = linked.map(([, input], row) => ({ source: (input as [string])[0], row }));
    nodes.set(id, { id, title, type, rows, links, height: HEADER + rows.length * ROW + 8 });
  }
  return nodes;
}

/** Return each node's layer: behind all that it needs, and as near as it can be to what needs it. */
function assignLayers(nodes: Map<string, GraphNode>): Map<string, number> {
  const users = new Map<string, string[]>([...nodes.keys()].map((id) => [id, []]));
  const missing = new Map<string, number>();
  for (const node of nodes.values()) {
    missing.set(node.id, node.links.length);
    for (const { source } of node.links) users.get(source)!.push(node.id);
  }
  const layers = new Map<string, number>();
  const order = [...nodes.keys()].filter((id) => missing.get(id) === 0);
  for (const id of order) layers.set(id, 0);
  for (let index = 0; index < order.length; index += 1) {
    const id = order[index]!;
    for (const user of users.get(id)!) {
      layers.set(user, Math.max(layers.get(user) ?? 0, layers.get(id)! + 1));
      missing.set(user, missing.get(user)! - 1);
      if (missing.get(user) === 0) order.push(user);
    }
  }
  // ComfyUI refuses cycles, but a drawing must not hang on one: such nodes stay where they are.
  for (const id of nodes.keys()) if (!layers.has(id)) layers.set(id, 0);
  for (const id of order.reverse()) {
    const near = users.get(id)!.reduce((least, user) => Math.min(least, layers.get(user)! - 1), Infinity);
    if (near !== Infinity) layers.set(id, Math.max(layers.get(id)!, near));
  }
  return layers;
}

/** Return the layers with their nodes near the middle of their neighbours, so that few links cross. */
function orderLayers(nodes: Map<string, GraphNode>, layerOf: Map<string, number>): GraphNode[][] {
  const layers: GraphNode[][] = [];
  for (const node of nodes.values()) (layers[layerOf.get(node.id)!] ??= []).push(node);
  const filled = layers.filter(Boolean);
  const neighbours = new Map<string, string[]>([...nodes.keys()].map((id) => [id, []]));
  for (const node of nodes.values()) {
    for (const { source } of node.links) {
      neighbours.get(node.id)!.push(source);
      neighbours.get(source)!.push(node.id);
    }
  }
  const places = new Map<string, number>();
  const place = (layer: GraphNode[]) => layer.forEach((node, index) => places.set(node.id, (index + 0.5) / layer.length));
  filled.forEach(place);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    for (const layer of sweep % 2 === 0 ? filled : [...filled].reverse()) {
      const wanted = new Map(layer.map((node) => {
        const near = neighbours.get(node.id)!.map((id) => places.get(id)!);
        const middle = near.length === 0 ? places.get(node.id)! : near.reduce((sum, value) => sum + value, 0) / near.length;
        return [node.id, middle];
      }));
      layer.sort((left, right) => wanted.get(left.id)! - wanted.get(right.id)!);
      place(layer);
    }
  }
  return filled;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function describe(value: unknown): string {
  return (typeof value === "string" ? value : (JSON.stringify(value) ?? "")).replace(/\s+/g, " ");
}
