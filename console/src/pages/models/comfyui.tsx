import { Center, Loader, NavLink, ScrollArea, Select, SimpleGrid, Stack, Table, Text, TextInput, Title } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useState } from "react";

import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { MoreButton } from "#/components/more-button";
import { useFormat, useStrings } from "#/language";

import { useFiles, useFolders, usePools } from "./comfyui-api";
import { Nodes } from "./nodes";
import { strings } from "./strings";

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
            <FileList key={folder} folder={folder} pool={pool} />
          </SimpleGrid>
        </>
      )}
    </section>
  );
}

function FileList({ folder, pool }: { folder: string; pool: string | undefined }) {
  const t = useStrings(strings);
  const { number } = useFormat();
  const [typed, setTyped] = useState("");
  const [search] = useDebouncedValue(typed.trim(), 250);
  const list = useFiles(folder, pool, search);
  if (list.data === undefined) {
    return list.error ? <ErrorAlert error={list.error} onRetry={() => void list.refetch()} /> : <Center h={100}><Loader /></Center>;
  }
  const names = list.data.pages.flatMap((page) => page.items);
  if (names.length === 0 && !typed) return <EmptyState title={t.noFiles}>{t.noFilesText}</EmptyState>;
  return (
    <Stack gap="xs">
      {list.error && <ErrorAlert error={list.error} onRetry={() => void list.refetch()} />}
      <TextInput
        aria-label={t.searchFiles} placeholder={t.searchFiles} value={typed} maxLength={200}
        onChange={(event) => setTyped(event.currentTarget.value)}
      />
      <Text size="xs" c="dimmed" role="status">
        {t.filesCount(number(names.length), number(list.data.pages[0]?.count ?? 0))}
      </Text>
      {names.length === 0 ? <EmptyState title={t.noMatch} /> : (
        <Table.ScrollContainer minWidth={0} mah={300} type="native" tabIndex={0}>
          <Table aria-label={`${t.files}: ${folder}`} fz="sm">
            <Table.Thead><Table.Tr><Table.Th>{folder}</Table.Th></Table.Tr></Table.Thead>
            <Table.Tbody>
              {names.map((name) => (
                <Table.Tr key={name}><Table.Td style={{ overflowWrap: "anywhere" }}>{name}</Table.Td></Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
          <MoreButton list={list} />
        </Table.ScrollContainer>
      )}
    </Stack>
  );
}
