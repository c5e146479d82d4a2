import { Center, Code, Drawer, Loader, Stack, Table, Text, TextInput, Title, UnstyledButton } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useState } from "react";

import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { MoreButton } from "#/components/more-button";
import { useFormat, useStrings } from "#/language";

import { type NodeDetails, type NodeSummary, useNode, useNodes } from "./comfyui-api";
import { strings } from "./strings";

const MAX_CHOICES = 12;

/** Searches the nodes, of which a pool may have thousands. */
export function Nodes({ pool }: { pool: string | undefined }) {
  const t = useStrings(strings);
  const { number } = useFormat();
  const [typed, setTyped] = useState("");
  const [search] = useDebouncedValue(typed.trim(), 250);
  const list = useNodes(pool, search);
  const { data, error, refetch } = list;
  const [opened, setOpened] = useState<NodeSummary | null>(null);
  const nodes = data?.pages.flatMap((page) => page.items) ?? [];
  return (
    <section>
      <Title order={3} size="h4" mb="xs">{t.nodes}</Title>
      {error && <ErrorAlert error={error} onRetry={() => void refetch()} />}
      {data === undefined && !error && <Center h={100}><Loader /></Center>}
      {data !== undefined && (
        <Stack gap="xs">
          <TextInput
            aria-label={t.searchNodes} placeholder={t.searchNodes} maw={480} value={typed} maxLength={200}
            onChange={(event) => setTyped(event.currentTarget.value)}
          />
          <Text size="xs" c="dimmed" role="status">
            {t.nodesCount(number(nodes.length), number(data.pages[0]?.count ?? 0))}
          </Text>
          {nodes.length === 0 ? <EmptyState title={t.noMatch} /> : (
            <Table.ScrollContainer minWidth={480} type="native" tabIndex={0}>
              <Table aria-label={t.nodes} fz="sm">
                <Table.Thead>
                  <Table.Tr><Table.Th>{t.name}</Table.Th><Table.Th>{t.category}</Table.Th></Table.Tr>
                </Table.Thead>
                <Table.Tbody>
                  {nodes.map((node) => (
                    <Table.Tr key={node.name}>
                      <Table.Td>
                        <UnstyledButton
                          c="var(--mantine-color-anchor)" fz="sm" aria-label={t.detailsOf(node.title)}
                          onClick={() => setOpened(node)}
                        >
                          {node.title}
                        </UnstyledButton>
                        {node.title !== node.name && <Text size="xs" c="dimmed">{node.name}</Text>}
                      </Table.Td>
                      <Table.Td>
                        {node.category}
                        <Text size="xs" c="dimmed" lineClamp={2}>{node.description}</Text>
                      </Table.Td>
                    </Table.Tr>
                  ))}
                </Table.Tbody>
              </Table>
            </Table.ScrollContainer>
          )}
          <MoreButton list={list} />
        </Stack>
      )}
      <Drawer
        opened={opened !== null} onClose={() => setOpened(null)} position="right" size="lg" title={opened?.title}
        closeButtonProps={{ "aria-label": t.close }}
      >
        {opened !== null && <Details name={opened.name} />}
      </Drawer>
    </section>
  );
}

function Details({ name }: { name: string }) {
  const t = useStrings(strings);
  const { data: node, error } = useNode(name);
  if (error) return <ErrorAlert error={error} />;
  if (node === undefined) return <Center h={100}><Loader /></Center>;
  if (node === null) return <EmptyState title={t.noMatch} />;
  return (
    <Stack>
      <Text size="sm" c="dimmed"><Code>{name}</Code> · {node.category} · {node.python_module}</Text>
      {node.description && <Text size="sm" style={{ whiteSpace: "pre-wrap" }}>{node.description}</Text>}
      <section>
        <Title order={3} size="h5">{t.inputs}</Title>
        <Inputs node={node} />
      </section>
      <section>
        <Title order={3} size="h5">{t.outputs}</Title>
        <Text size="sm">
          {(node.output ?? []).map((type, place) => nameOutput(type, node.output_name?.[place])).join(", ") || t.none}
        </Text>
      </section>
    </Stack>
  );
}

function Inputs({ node }: { node: NodeDetails }) {
  const t = useStrings(strings);
  const inputs = (["required", "optional"] as const).flatMap((kind) =>
    Object.entries(node.input?.[kind] ?? {}).map(([name, spec]) => ({ name, spec, isRequired: kind === "required" }))
  );
  if (inputs.length === 0) return <Text size="sm">{t.none}</Text>;
  return (
    <Table fz="sm" aria-label={t.inputs}>
      <Table.Thead><Table.Tr><Table.Th>{t.name}</Table.Th><Table.Th>{t.type}</Table.Th></Table.Tr></Table.Thead>
      <Table.Tbody>
        {inputs.map(({ name, spec, isRequired }) => (
          <Table.Tr key={name}>
            <Table.Td>
              {name}
              {isRequired && <Text size="xs" c="dimmed">{t.required}</Text>}
            </Table.Td>
            <Table.Td><InputType spec={spec} /></Table.Td>
          </Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  );
}

function InputType({ spec }: { spec: unknown }) {
  const t = useStrings(strings);
  const { number } = useFormat();
  const [type, options] = (Array.isArray(spec) ? spec : [spec]) as [unknown, Record<string, unknown> | undefined];
  const choices = Array.isArray(type) ? type : Array.isArray(options?.options) ? options.options : null;
  const shown = choices?.slice(0, MAX_CHOICES).map(String).join(", ");
  return (
    <>
      {choices === null ? String(type) : t.choices(number(choices.length))}
      {choices !== null && (
        <Text size="xs" c="dimmed" style={{ overflowWrap: "anywhere" }}>
          {shown}{choices.length > MAX_CHOICES && ", …"}
        </Text>
      )}
      {typeof options?.tooltip === "string" && <Text size="xs" c="dimmed">{options.tooltip}</Text>}
    </>
  );
}

function nameOutput(type: unknown, name: string | undefined): string {
  const kind = Array.isArray(type) ? "COMBO" : String(type);
  return name && name !== kind ? `${name} (${kind})` : kind;
}
