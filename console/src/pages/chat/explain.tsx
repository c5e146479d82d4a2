import { Center, Loader, Modal, Stack, Title } from "@mantine/core";
import { useQueries } from "@tanstack/react-query";

import { explainRoute } from "#/api/text-models";
import { ErrorAlert } from "#/components/error-alert";
import { RouteExplanation } from "#/components/route-explanation";
import { useStrings } from "#/language";

import { strings } from "./strings";

interface Props {
  /** The requests that the draft would become, one for each model; `null` hides the dialog. */
  requests: readonly Record<string, unknown>[] | null;
  onClose: () => void;
}

/** Shows who would answer a draft, without sending it to a model. */
export function ExplainDialog({ requests, onClose }: Props) {
  const t = useStrings(strings);
  const explanations = useQueries({
    queries: (requests ?? []).map((request) => ({
      queryKey: ["route", request],
      gcTime: 0,
      queryFn: () => explainRoute(request),
    })),
  });
  return (
    <Modal opened={requests !== null} onClose={onClose} title={t.explainTitle} size={1000} closeButtonProps={{ "aria-label": t.close }}>
      <Stack gap="xl">
        {explanations.map(({ data, error }, place) => (
          <section key={place}>
            {explanations.length > 1 && <Title order={3} size="h4" mb="xs">{String(requests?.[place]?.model)}</Title>}
            {error !== null && <ErrorAlert error={error} />}
            {data === undefined
              ? error === null && <Center><Loader /></Center>
              : <RouteExplanation explanation={data} />}
          </section>
        ))}
      </Stack>
    </Modal>
  );
}
