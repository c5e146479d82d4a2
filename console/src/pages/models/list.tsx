import { Anchor, Badge, Center, Group, Loader, Stack, Table, Text, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useState } from "react";
import { Link } from "wouter";

import { ABILITIES, answersChats, type ModelBackend, type TextModel, useTextModelPages } from "#/api/text-models";
import { hasScope, useCaller } from "#/api/session";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { MoreButton } from "#/components/more-button";
import { Reconnecting } from "#/components/reconnecting";
import { useFormat, useStrings } from "#/language";

import { StatusBadge } from "./status-badge";
import { strings } from "./strings";

/** Lists the models and aliases that the caller may use. */
export function ModelList() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const [filter, setFilter] = useState("");
  const [search] = useDebouncedValue(filter.trim(), 250);
  const list = useTextModelPages(search, caller != null && hasScope(caller, "jobs:read"));
  const { error, refetch, live } = list;
  if (list.data === undefined) {
    return error ? <ErrorAlert error={error} onRetry={() => void refetch()} /> : <Center h={200}><Loader /></Center>;
  }
  const models = list.data.pages.flatMap((page) => page.data);
  if (models.length === 0 && !filter) return <EmptyState title={t.noModels}>{t.noModelsText}</EmptyState>;
  const hasBackends = models.some(({ backends }) => backends !== undefined);
  return (
    <Stack>
      <Reconnecting live={live} />
      {error && <ErrorAlert error={error} onRetry={() => void refetch()} />}
      <TextInput
        aria-label={t.filter} placeholder={t.filter} maw={320} value={filter} maxLength={200}
        onChange={(event) => setFilter(event.currentTarget.value)}
      />
      {models.length === 0 ? <EmptyState title={t.noMatch} /> : (
        <Table.ScrollContainer minWidth={hasBackends ? 860 : 560} type="native" tabIndex={0}>
          <Table verticalSpacing="sm" aria-label={t.tabs.list}>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t.name}</Table.Th>
                <Table.Th>{t.statusTitle}</Table.Th>
                <Table.Th>{t.abilities}</Table.Th>
                <Table.Th>{t.context}</Table.Th>
                {hasBackends && <Table.Th>{t.answeredBy}</Table.Th>}
                <Table.Th />
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {models.map((model) => <ModelRow key={model.id} model={model} hasBackends={hasBackends} />)}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
      <MoreButton list={list} />
    </Stack>
  );
}

function ModelRow({ model, hasBackends }: { model: TextModel; hasBackends: boolean }) {
  const t = useStrings(strings);
  const { number } = useFormat();
  const operations = model.abilities.filter((call) => call !== "chat" && call !== "embeddings");
  return (
    <Table.Tr>
      <Table.Td><Text size="sm" fw={600} miw={130} style={{ overflowWrap: "anywhere" }}>{model.id}</Text></Table.Td>
      <Table.Td><StatusBadge status={model.status} /></Table.Td>
      <Table.Td>
        <Group gap={4}>
          {ABILITIES.filter((ability) => model[ability]).map((ability) => (
            <Badge key={ability} size="sm" variant="default" tt="none" miw="max-content">{t.ability[ability]}</Badge>
          ))}
          {operations.map((call) => <Badge key={call} size="sm" variant="default" tt="none">{call}</Badge>)}
        </Group>
      </Table.Td>
      <Table.Td style={{ whiteSpace: "nowrap" }}>
        {model.max_input_tokens !== null && t.tokens(number(model.max_input_tokens))}
      </Table.Td>
      {hasBackends && (
        <Table.Td>
          {model.backends?.map((backend) => <BackendLine key={`${backend.name}/${backend.model}`} backend={backend} />)}
        </Table.Td>
      )}
      <Table.Td ta="right">
        {model.status === "up" && answersChats(model) && (
          <Anchor
            component={Link} href={`/chat?model=${encodeURIComponent(model.id)}`} size="sm"
            aria-label={t.chatWith(model.id)}
          >
            {t.chat}
          </Anchor>
        )}
      </Table.Td>
    </Table.Tr>
  );
}

function BackendLine({ backend: { name, model, status, usd_per_million_tokens: price } }: { backend: ModelBackend }) {
  const t = useStrings(strings);
  const { usd } = useFormat();
  const [input, output] = [Number(price.input), Number(price.output)];
  return (
    <Text size="xs">
      {name} · {model}
      <Text span inherit c="dimmed">
        {" – "}
        {input === 0 && output === 0 ? t.free : t.price(usd(input), usd(output))}
        {status !== "up" && ` (${t.status[status]})`}
      </Text>
    </Text>
  );
}
