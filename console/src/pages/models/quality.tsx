import { Alert, Center, Loader, Stack, Table, Text, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";

import { body, models } from "#/api/client";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { usePercent } from "#/components/small-numbers";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

interface ModelQuality {
  model: string;
  ability: number | null;
  spread: number | null;
  source: string;
  kinds: Record<string, { ability: number; spread: number; source: string }>;
  signals: Record<string, number>;
}

interface QualityReport {
  frozen: boolean;
  models: ModelQuality[];
  calibration: { from: number; to: number; signals: number; expected: number; good: number }[];
}

/** Shows what the router expects of the models' answers, and how right it was. */
export function Quality() {
  const t = useStrings(strings);
  const { data, error, refetch } = useQuery({
    queryKey: ["models", "quality"],
    queryFn: async () => (await body(models.GET("/quality"))) as unknown as QualityReport,
  });
  if (data === undefined) {
    return error ? <ErrorAlert error={error} onRetry={() => void refetch()} /> : <Center h={200}><Loader /></Center>;
  }
  if (data.models.length === 0) return <EmptyState title={t.noModels}>{t.noModelsText}</EmptyState>;
  return (
    <Stack gap="xl">
      <div>
        <Text size="sm" c="dimmed" maw={800}>{t.qualityText}</Text>
        {data.frozen && <Alert color="yellow" mt="sm">{t.frozen}</Alert>}
        <Table.ScrollContainer minWidth={640} type="native" mt="sm" tabIndex={0}>
          <Table verticalSpacing="xs" aria-label={t.tabs.quality}>
            <Table.Thead>
              <Table.Tr>
                {[t.model, t.ability1, t.byKind, t.ratings, t.source].map((name) => <Table.Th key={name}>{name}</Table.Th>)}
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {data.models.map((model) => <QualityRow key={model.model} model={model} />)}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      </div>
      <section>
        <Title order={3} size="h5" mb="xs">{t.calibration}</Title>
        {data.calibration.length === 0
          ? <Text size="sm" c="dimmed">{t.calibrationEmpty}</Text>
          : <Calibration rows={data.calibration} />}
      </section>
    </Stack>
  );
}

function QualityRow({ model: { model, ability, spread, source, kinds, signals } }: { model: ModelQuality }) {
  const t = useStrings(strings);
  const { number } = useFormat();
  const ratings = Object.entries(signals);
  return (
    <Table.Tr>
      <Table.Td fw={500}>{model}</Table.Td>
      <Table.Td style={{ whiteSpace: "nowrap" }}>
        {ability !== null && <>{number(ability)} <Text span size="xs" c="dimmed">{t.spread(number(spread ?? 0))}</Text></>}
      </Table.Td>
      <Table.Td>
        {Object.entries(kinds).map(([kind, one]) => <Text key={kind} size="xs">{kind}: {number(one.ability)}</Text>)}
      </Table.Td>
      <Table.Td>
        {ratings.length === 0
          ? <Text size="xs" c="dimmed">{t.noRatings}</Text>
          : ratings.map(([kind, count]) => <Text key={kind} size="xs">{kind}: {number(count)}</Text>)}
      </Table.Td>
      <Table.Td><Text size="xs" c="dimmed">{source}</Text></Table.Td>
    </Table.Tr>
  );
}

function Calibration({ rows }: { rows: QualityReport["calibration"] }) {
  const t = useStrings(strings);
  const { number } = useFormat();
  const percent = usePercent();
  return (
    <Table maw={560} aria-label={t.calibration}>
      <Table.Thead>
        <Table.Tr>{[t.expected, t.observed, t.count].map((name) => <Table.Th key={name}>{name}</Table.Th>)}</Table.Tr>
      </Table.Thead>
      <Table.Tbody>
        {rows.map((row) => (
          <Table.Tr key={row.from}>
            <Table.Td>{percent(row.expected)}</Table.Td>
            <Table.Td>{percent(row.good)}</Table.Td>
            <Table.Td>{number(row.signals)}</Table.Td>
          </Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  );
}
