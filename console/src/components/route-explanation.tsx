import { Alert, Badge, Code, Group, Stack, Table, Text, Title } from "@mantine/core";
import { IconArrowRight } from "@tabler/icons-react";

import type { Candidate, Explained, Explanation } from "#/api/text-models";
import { strings } from "#/components/route-explanation-strings";
import { useExactUsd, usePercent } from "#/components/small-numbers";
import { useFormat, useStrings } from "#/language";

/** Shows why a back end would answer a request, and why the others would not. */
export function RouteExplanation({ explanation }: { explanation: Explanation }) {
  const t = useStrings(strings);
  const { chosen, error, omitted, candidates: [best] } = explanation;
  const isTranslated = best?.reasons.every(({ code }) => code in t.reasons);
  return (
    <Stack gap="md">
      {chosen !== null && (
        <Alert color="teal" icon={<IconArrowRight aria-hidden />} title={`${t.chosen}: ${chosen.backend} · ${chosen.model}`}>
          <Text size="sm">
            {t.why}: {isTranslated ? <><WhyText explained={best!} /> <Code>{explanation.route}</Code></> : explanation.route}
          </Text>
          {omitted.length > 0 && <Text size="sm">{t.omitted}: {omitted.map((name) => t.abilities[name] ?? name).join(", ")}</Text>}
        </Alert>
      )}
      {error !== null && (
        <Alert color="red" title={t.nobody} role="alert">
          <Text size="sm">{error.message}</Text>
          <Code>{error.code}</Code>
        </Alert>
      )}
      <Needs explanation={explanation} />
      {explanation.candidates.length > 0 && <Candidates candidates={explanation.candidates} />}
      {explanation.refused.length > 0 && <Excluded explanation={explanation} />}
    </Stack>
  );
}

/** A reason in the reader's language, or else in the server's words. */
function WhyText({ explained: { reason, reasons } }: { explained: Explained }) {
  const t = useStrings(strings);
  const format = useFormat();
  const exact = useExactUsd();
  const percent = usePercent();
  const words = reasons.map((one) => t.reasons[one.code]?.(one, { ...format, exact, percent }));
  return words.every((text) => text !== undefined) ? words.join(t.and) : <span lang="en">{reason}</span>;
}

function Needs({ explanation: { needs, quality, usd_per_second } }: { explanation: Explanation }) {
  const t = useStrings(strings);
  const { number, languageName } = useFormat();
  const exact = useExactUsd();
  const abilities = ["tools", "vision", "schema", "thinking"].filter((name) => needs[name] === true);
  const facts = [
    t.promptTokens(number(needs.prompt_tokens)),
    ...(needs.max_tokens === null ? [] : [t.maxTokens(number(needs.max_tokens))]),
    ...abilities.map((name) => t.abilities[name] ?? name),
    ...(quality === null ? [] : [t.kind(t.kinds[quality.kind] ?? quality.kind, languageName(quality.language)), t.badAnswer(exact(quality.usd_per_bad_answer))]),
    t.second(exact(usd_per_second)),
  ];
  return <Text size="sm" c="dimmed">{t.needs}: {facts.join(" · ")}</Text>;
}

function Candidates({ candidates }: { candidates: Candidate[] }) {
  const t = useStrings(strings);
  return (
    <section>
      <Title order={3} size="h5">{t.candidates}</Title>
      <Text size="xs" c="dimmed" mb="xs">{t.scoreHelp}</Text>
      <Table.ScrollContainer minWidth={760} type="native" tabIndex={0}>
        <Table verticalSpacing="xs" aria-label={t.candidates}>
          <Table.Thead>
            <Table.Tr>
              {[t.backend, t.score, t.losesBy, t.cost, t.time, t.good, t.reason].map((name) => (
                <Table.Th key={name}>{name}</Table.Th>
              ))}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {candidates.map((candidate, place) => (
              <CandidateRow key={`${candidate.backend}/${candidate.model}`} candidate={candidate} isBest={place === 0} />
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </section>
  );
}

function CandidateRow({ candidate, isBest }: { candidate: Candidate; isBest: boolean }) {
  const t = useStrings(strings);
  const { number, seconds } = useFormat();
  const exact = useExactUsd();
  const percent = usePercent();
  const { expected, quality } = candidate;
  return (
    <Table.Tr>
      <Table.Td>
        <Text size="sm" fw={isBest ? 700 : 500}>{candidate.backend}</Text>
        <Group gap={4}>
          <Text size="xs" c="dimmed">{candidate.model}</Text>
          {candidate.state !== "unknown" && <Badge size="xs" variant="default" tt="none">{t.states[candidate.state] ?? candidate.state}</Badge>}
        </Group>
      </Table.Td>
      <Table.Td>{exact(candidate.score_usd)}</Table.Td>
      <Table.Td>{isBest ? "" : `+${exact(candidate.loses_by_usd)}`}</Table.Td>
      <Table.Td>{exact(Number(expected.cost_usd))}</Table.Td>
      <Table.Td>
        <Text size="sm">{seconds(expected.seconds)}</Text>
        <Text size="xs" c="dimmed">
          {t.timeParts(
            seconds(expected.waiting_seconds), seconds(expected.loading_seconds),
            seconds(expected.first_token_seconds), seconds(expected.writing_seconds),
          )}
        </Text>
      </Table.Td>
      <Table.Td>
        {quality !== null && (
          <>
            <Text size="sm">{percent(quality.p_good)}</Text>
            <Text size="xs" c="dimmed">
              {t.goodRange(percent(quality.p_good_low), percent(quality.p_good_high))}
              {" · "}
              {t.basis(t.bases[quality.basis] ?? quality.basis, number(quality.signals))}
            </Text>
          </>
        )}
      </Table.Td>
      <Table.Td><Text size="sm"><WhyText explained={candidate} /></Text></Table.Td>
    </Table.Tr>
  );
}

function Excluded({ explanation: { refused } }: { explanation: Explanation }) {
  const t = useStrings(strings);
  const { seconds } = useFormat();
  return (
    <section>
      <Title order={3} size="h5" mb="xs">{t.excluded}</Title>
      <Table.ScrollContainer minWidth={360} type="native" tabIndex={0}>
        <Table aria-label={t.excluded}>
          <Table.Thead>
            <Table.Tr><Table.Th>{t.backend}</Table.Th><Table.Th>{t.reason}</Table.Th></Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {refused.map((one) => (
              <Table.Tr key={`${one.backend}/${one.model}`}>
                <Table.Td>
                  <Text size="sm" fw={500}>{one.backend}</Text>
                  <Text size="xs" c="dimmed">{one.model}</Text>
                </Table.Td>
                <Table.Td>
                  <Text size="sm"><WhyText explained={one} /></Text>
                  {(one.retry_after ?? 0) > 0 && <Text size="xs" c="dimmed">{t.retryAfter(seconds(one.retry_after ?? 0))}</Text>}
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </section>
  );
}
