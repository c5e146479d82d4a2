/** Shows what runs, what it costs, and what is wrong: to operators all of it, to others their share. */

import { Stack } from "@mantine/core";

import { useCluster } from "#/api/cluster";
import { hasScope, useCaller } from "#/api/session";
import { ErrorAlert } from "#/components/error-alert";
import { PageHeader } from "#/components/page-header";
import { Problems } from "#/components/problems";
import { Reconnecting } from "#/components/reconnecting";
import { useStrings } from "#/language";

import { Backends } from "./backends";
import { Money } from "./money";
import { Nodes } from "./nodes";
import { Pools } from "./pools";
import { strings } from "./strings";

export default function OverviewPage() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const { data: cluster, error, refetch, isReconnecting } = useCluster();
  if (!caller) return null;
  const isOperator = hasScope(caller, "operator");
  return (
    <>
      <PageHeader title={t.title}>{isReconnecting && <Reconnecting />}</PageHeader>
      <Stack>
        {error !== null && <ErrorAlert error={error} onRetry={() => void refetch()} />}
        {cluster?.problems && <Problems problems={cluster.problems} />}
        {hasScope(caller, "text") && <Money isOperator={isOperator} />}
        {cluster && <Pools pools={cluster.pools} nodes={cluster.nodes ?? []} />}
        {cluster && isOperator && <Nodes nodes={cluster.nodes ?? null} />}
        {(isOperator || hasScope(caller, "org:admin")) && <Backends isOperator={isOperator} />}
      </Stack>
    </>
  );
}
