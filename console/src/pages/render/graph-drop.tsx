/** Takes a graph from a file, and shows what the farm lacks for it. */

import { Alert, Anchor, Button, Code, FileButton, Group, List, Loader, Paper, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconCheck, IconFileImport, IconX } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";

import { findMissing, type GraphFile, type GraphProblem, type Missing, readGraphFile } from "./graph";
import { strings } from "./strings";

interface Props {
  file: GraphFile | null;
  onFile: (file: GraphFile | null) => void;
}

export function GraphDrop({ file, onFile }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const [problem, setProblem] = useState<GraphProblem | null>(null);
  const [isOver, setIsOver] = useState(false);
  const take = async (chosen: File | null | undefined) => {
    if (!chosen) return;
    const read = await readGraphFile(chosen);
    setProblem(typeof read === "string" ? read : null);
    if (typeof read !== "string") onFile(read);
  };
  return (
    <Stack gap="sm">
      <Paper
        withBorder p="lg" bg={isOver ? "var(--mantine-primary-color-light)" : undefined}
        style={{ borderStyle: "dashed" }}
        onDragOver={(event) => {
          event.preventDefault();
          setIsOver(true);
        }}
        onDragLeave={() => setIsOver(false)}
        onDrop={(event) => {
          event.preventDefault();
          setIsOver(false);
          void take(event.dataTransfer.files[0]);
        }}
      >
        <Stack align="center" gap="xs">
          <Text fw={500} ta="center">{t.dropGraph}</Text>
          <Text size="sm" c="dimmed" ta="center">{t.dropHint}</Text>
          <FileButton accept="application/json,image/png,.json,.png" onChange={(chosen) => void take(chosen)}>
            {(props) => (
              <Button {...props} variant="default" leftSection={<IconFileImport size={16} aria-hidden />}>{t.chooseFile}</Button>
            )}
          </FileButton>
        </Stack>
      </Paper>
      {problem && <Alert color="orange" role="alert" icon={<IconAlertTriangle aria-hidden />}>{t[problem]}</Alert>}
      {file && (
        <>
          <Group justify="space-between" wrap="nowrap">
            <Text size="sm" style={{ overflowWrap: "anywhere" }}>
              {file.format === "api" ? t.graphOf(file.name, format.number(Object.keys(file.graph).length)) : file.name}
            </Text>
            <Button
              variant="subtle" size="compact-xs" flex="none" leftSection={<IconX size={14} aria-hidden />}
              onClick={() => onFile(null)}
            >
              {t.removeGraph}
            </Button>
          </Group>
          <GraphCheck file={file} />
        </>
      )}
    </Stack>
  );
}

function GraphCheck({ file }: { file: GraphFile }) {
  const t = useStrings(strings);
  const missing = useQuery({ queryKey: ["render", "missing", file], queryFn: () => findMissing(file), gcTime: 0 });
  const isEditor = file.format === "editor";
  return (
    <Stack gap="sm" aria-live="polite">
      {isEditor && (
        <Alert color="orange" title={t.editorFormat} icon={<IconAlertTriangle aria-hidden />}>
          <Text size="sm">{t.editorHint}</Text>
          <Anchor size="sm" href="/comfy/" target="_blank" rel="noopener">{t.openComfy}</Anchor>
        </Alert>
      )}
      {missing.isPending && <Group gap="xs"><Loader size="xs" /><Text size="sm">{t.checking}</Text></Group>}
      {missing.error && <ErrorAlert error={missing.error} onRetry={() => void missing.refetch()} />}
      {missing.data && <MissingList missing={missing.data} complete={isEditor ? t.editorComplete : t.nothingMissing} />}
    </Stack>
  );
}

function MissingList({ missing, complete }: { missing: Missing; complete: string }) {
  const t = useStrings(strings);
  const format = useFormat();
  if (missing.classes.length + missing.choices.length + missing.unchecked === 0) {
    return <Group gap={6} wrap="nowrap"><IconCheck size={16} aria-hidden /><Text size="sm">{complete}</Text></Group>;
  }
  return (
    <Alert color="orange" title={t.missing} icon={<IconAlertTriangle aria-hidden />}>
      {missing.classes.length > 0 && (
        <>
          <Text size="sm">{t.missingNodes}</Text>
          <List size="sm" mb="xs">{missing.classes.map((name) => <List.Item key={name}><Code>{name}</Code></List.Item>)}</List>
        </>
      )}
      {missing.choices.length > 0 && (
        <>
          <Text size="sm">{t.missingChoices}</Text>
          <List size="sm">
            {missing.choices.map(({ node, input, value }) => (
              <List.Item key={`${node} ${input}`}>{node} · {input}: <Code>{value}</Code></List.Item>
            ))}
          </List>
        </>
      )}
      {missing.unchecked > 0 && <Text size="sm">{t.unchecked(format.number(missing.unchecked))}</Text>}
    </Alert>
  );
}
