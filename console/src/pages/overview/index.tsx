/** Shows what runs, what it costs, and what is wrong: to operators all of it, to others their share. */

import { Stack } from "@mantine/core";

import { useOverview } from "#/api/cluster";
import { type Caller, hasScope, useCaller } from "#/api/session";
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
  const { data: caller } = useCaller();
  return caller ? <Overview caller={caller} /> : null;
}

function Overview({ caller }: { caller: Caller }) {
  const t = useStrings(strings);
  const isOperator = hasScope(caller, "operator");
  const { cluster: { data: cluster, error, refetch }, backends, usage, live } = useOverview(isOperator);
  const seesBackends = hasScope(caller, "text") && (isOperator || hasScope(caller, "org:admin"));
  return (
    <>
      <PageHeader title={t.title}><Reconnecting live={live} /></PageHeader>
      <Stack>
        {error !== null && <ErrorAlert error={error} onRetry={() => void refetch()} />}
        {cluster?.problems && <Problems problems={cluster.problems} />}
        {hasScope(caller, "text") && <Money usage={usage} isOperator={isOperator} />}
        {cluster && <Pools pools={cluster.pools} nodes={cluster.nodes ?? []} />}
        {cluster && isOperator && <Nodes nodes={cluster.nodes ?? null} />}
        {seesBackends && <Backends list={backends} isOperator={isOperator} />}
      </Stack>
    </>
  );
}
