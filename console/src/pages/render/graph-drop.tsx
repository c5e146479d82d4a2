/** Takes a graph from a file. */

import { Alert, Button, FileButton, Group, Loader, Paper, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconFileImport, IconX } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";

import { convertGraph, type GraphFile, type GraphProblem, readGraphFile } from "./graph";
import { GraphReport } from "./graph-report";
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
  const conversion = useMutation({
    mutationFn: ({ name, json }: { name: string; json: string }) => convertGraph(name, json),
    onSuccess: onFile,
  });
  const take = async (chosen: File | null | undefined) => {
    if (!chosen) return;
    onFile(null);
    conversion.reset();
    const read = await readGraphFile(chosen);
    setProblem(typeof read === "string" ? read : null);
    if (typeof read !== "string") conversion.mutate({ name: chosen.name, json: read.json });
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
      <div aria-live="polite">
        {conversion.isPending && <Group gap="xs"><Loader size="xs" /><Text size="sm">{t.checking}</Text></Group>}
      </div>
      {conversion.error && (
        <ErrorAlert error={conversion.error} onRetry={() => conversion.mutate(conversion.variables)} />
      )}
      {file && (
        <>
          <Group justify="space-between" wrap="nowrap">
            <Text size="sm" style={{ overflowWrap: "anywhere" }}>
              {t.graphOf(file.name, format.number(Object.keys(file.graph).length))}
            </Text>
            <Button
              variant="subtle" size="compact-xs" flex="none" leftSection={<IconX size={14} aria-hidden />}
              onClick={() => onFile(null)}
            >
              {t.removeGraph}
            </Button>
          </Group>
          <GraphReport file={file} />
        </>
      )}
    </Stack>
  );
}
