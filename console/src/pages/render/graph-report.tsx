/** Shows what the farm lacks for a graph, and what of the editor's graph was left out. */

import { Alert, Code, Group, List, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconCheck } from "@tabler/icons-react";

import { useFormat, useStrings } from "#/language";

import type { GraphFile } from "./graph";
import { strings } from "./strings";

type LeftOut = GraphFile["left_out"][number];
type Missing = GraphFile["missing"];

// Of these, only the number is of interest; the others are named.
const COUNTED = new Set<LeftOut["reason"]>(["note", "reroute", "primitive", "group"]);
const MAX_NAMED = 20;

export function GraphReport({ file }: { file: GraphFile }) {
  return (
    <Stack gap="sm" aria-live="polite">
      <MissingParts pool={file.pool} missing={file.missing} />
      {file.left_out.length > 0 && <LeftOutParts parts={file.left_out} />}
    </Stack>
  );
}

function MissingParts({ pool, missing }: { pool: string; missing: Missing }) {
  const t = useStrings(strings);
  const { nodes, choices, files = [] } = missing;
  if (nodes.length + choices.length + files.length === 0) {
    return <Group gap={6} wrap="nowrap"><IconCheck size={16} aria-hidden /><Text size="sm">{t.nothingMissing(pool)}</Text></Group>;
  }
  return (
    <Alert color="orange" title={t.missing(pool)} icon={<IconAlertTriangle aria-hidden />}>
      {nodes.length > 0 && (
        <>
          <Text size="sm">{t.missingNodes}</Text>
          <List size="sm" mb="xs">
            {nodes.map(({ class_type: name }) => <List.Item key={name}><Code>{name}</Code></List.Item>)}
          </List>
        </>
      )}
      {choices.length > 0 && <MissingInputs title={t.missingChoices} inputs={choices} />}
      {files.length > 0 && <MissingInputs title={t.missingFiles} inputs={files} />}
    </Alert>
  );
}

function MissingInputs({ title, inputs }: { title: string; inputs: Missing["choices"] }) {
  return (
    <>
      <Text size="sm">{title}</Text>
      <List size="sm" mb="xs">
        {inputs.map(({ node, class_type: kind, input, value }) => (
          <List.Item key={`${node} ${input}`} style={{ overflowWrap: "anywhere" }}>
            {kind} ({node}) · {input}: <Code>{value}</Code>
          </List.Item>
        ))}
      </List>
    </>
  );
}

function LeftOutParts({ parts }: { parts: LeftOut[] }) {
  const t = useStrings(strings);
  const format = useFormat();
  const describe = (items: LeftOut[]) => {
    if (COUNTED.has(items[0]!.reason)) return format.number(items.length);
    const names = items.slice(0, MAX_NAMED).map(nameLeftOut);
    return [...names, ...(items.length > MAX_NAMED ? ["…"] : [])].join(", ");
  };
  const reasons = [...new Set(parts.map(({ reason }) => reason))];
  return (
    <Stack gap={2}>
      <Text size="sm" fw={500}>{t.leftOut}</Text>
      <List size="sm">
        {reasons.map((reason) => (
          <List.Item key={reason} style={{ overflowWrap: "anywhere" }}>
            {t.reasons[reason]}
            {": "}
            {describe(parts.filter((part) => part.reason === reason))}
          </List.Item>
        ))}
      </List>
    </Stack>
  );
}

function nameLeftOut({ title, node, input }: LeftOut): string {
  return `${title} (${node})${input ? ` · ${input}` : ""}`;
}
