import { Center, Loader, NavLink, ScrollArea, Select, SimpleGrid, Stack, Table, Text, Title } from "@mantine/core";
import { useState } from "react";

import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";

import { useFiles, useFolders, usePools } from "./comfyui-api";
import { Nodes } from "./nodes";
import { strings } from "./strings";

const MAX_ROWS = 300;

/** Shows the model files and nodes that graphs may use. */
export function ComfyUI() {
  const t = useStrings(strings);
  const pools = usePools();
  const [chosen, setChosen] = useState<string | null>(null);
  const pool = chosen ?? undefined;
  return (
    <Stack gap="xl">
      {(pools.data?.length ?? 0) > 1 && (
        <Select
          label={t.pool} data={pools.data} value={chosen} placeholder={t.allPools} clearable maw={320}
          onChange={setChosen}
        />
      )}
      <Files key={`files-${pool}`} pool={pool} />
      <Nodes key={`nodes-${pool}`} pool={pool} />
    </Stack>
  );
}

function Files({ pool }: { pool: string | undefined }) {
  const t = useStrings(strings);
  const folders = useFolders(pool);
  const [chosen, setChosen] = useState<string | null>(null);
  const folder = chosen ?? folders.data?.find((name) => name === "checkpoints") ?? folders.data?.[0] ?? null;
  return (
    <section>
      <Title order={3} size="h4" mb="xs">{t.files}</Title>
      {folders.error && <ErrorAlert error={folders.error} onRetry={() => void folders.refetch()} />}
      {folders.isPending && <Center h={100}><Loader /></Center>}
      {folders.data?.length === 0 && <EmptyState title={t.noFolders}>{t.noFoldersText}</EmptyState>}
      {folder !== null && folders.data !== undefined && (
        <>
          <Select
            label={t.folder} data={folders.data} value={folder} searchable allowDeselect={false} maw={320} mb="sm"
            hiddenFrom="sm" onChange={setChosen}
          />
          <SimpleGrid cols={{ base: 1, sm: 2 }}>
            <ScrollArea.Autosize mah={300} visibleFrom="sm" type="auto" offsetScrollbars component="nav" aria-label={t.folder}>
              {folders.data.map((name) => (
                <NavLink
                  key={name} component="button" label={name} active={name === folder} py={4}
                  aria-current={name === folder} onClick={() => setChosen(name)}
                />
              ))}
            </ScrollArea.Autosize>
            <FileList folder={folder} pool={pool} />
          </SimpleGrid>
        </>
      )}
    </section>
  );
}

function FileList({ folder, pool }: { folder: string; pool: string | undefined }) {
  const t = useStrings(strings);
  const { number } = useFormat();
  const { data, error, refetch } = useFiles(folder, pool);
  if (error) return <ErrorAlert error={error} onRetry={() => void refetch()} />;
  if (data === undefined) return <Center h={100}><Loader /></Center>;
  if (data.length === 0) return <EmptyState title={t.noFiles}>{t.noFilesText}</EmptyState>;
  return (
    <Table.ScrollContainer minWidth={0} mah={300} type="native" tabIndex={0}>
      <Table aria-label={`${t.files}: ${folder}`} fz="sm">
        <Table.Thead><Table.Tr><Table.Th>{folder}</Table.Th></Table.Tr></Table.Thead>
        <Table.Tbody>
          {data.slice(0, MAX_ROWS).map((name) => (
            <Table.Tr key={name}><Table.Td style={{ overflowWrap: "anywhere" }}>{name}</Table.Td></Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      {data.length > MAX_ROWS && <Text size="sm" c="dimmed">{t.more(number(data.length - MAX_ROWS))}</Text>}
    </Table.ScrollContainer>
  );
}
