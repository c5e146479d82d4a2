import { List, Text } from "@mantine/core";

import { ApiError } from "#/api/errors";

interface NodeError {
  class_type?: string;
  errors?: { message?: string; details?: string }[];
}

/** Lists what ComfyUI says of each node of a graph that was refused. */
export function NodeErrors({ error }: { error: Error }) {
  const nodes = error instanceof ApiError ? error.details.node_errors : undefined;
  if (typeof nodes !== "object" || nodes === null) return null;
  return (
    <List size="sm">
      {Object.entries(nodes as Record<string, NodeError>).map(([id, { class_type, errors = [] }]) => (
        <List.Item key={id}>
          <Text size="sm" fw={500}>{class_type} ({id})</Text>
          {errors.map(({ message, details }, index) => (
            <Text key={index} size="sm" style={{ overflowWrap: "anywhere" }}>{[message, details].filter(Boolean).join(": ")}</Text>
          ))}
        </List.Item>
      ))}
    </List>
  );
}
