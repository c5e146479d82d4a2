/** Shows operators what the gateway checks, its routes, intake, apps, versions and configuration. */

import { SimpleGrid, Skeleton, Stack } from "@mantine/core";

import { useOperations } from "#/api/cluster";
import { hasScope, useCaller } from "#/api/session";
import { ErrorAlert } from "#/components/error-alert";
import { PageHeader } from "#/components/page-header";
import { Reconnecting } from "#/components/reconnecting";
import { useStrings } from "#/language";

import { Apps, Versions } from "./apps";
import { Changes } from "./changes";
import { Checks } from "./checks";
import { Configuration } from "./configuration";
import { Doctor } from "./doctor";
import { Intake } from "./intake";
import { Links } from "./links";
import { Routes } from "./routes";
import { strings } from "./strings";

export default function OperatePage() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const { cluster, routes, live } = useOperations(caller != null && hasScope(caller, "jobs:read"));
  return (
    <>
      <PageHeader title={t.title}><Reconnecting live={live} /></PageHeader>
      <Stack>
        {cluster.isError && <ErrorAlert error={cluster.error} onRetry={() => void cluster.refetch()} />}
        {cluster.data?.problems && <Checks problems={cluster.data.problems} />}
        {routes.isError && <ErrorAlert error={routes.error} onRetry={() => void routes.refetch()} />}
        {routes.isPending && <Skeleton h={240} />}
        {routes.data && (
          <>
            <Routes routes={routes.data.routes} />
            {cluster.data && (
              <Intake sources={cluster.data.intake ?? null} isDeployed={"intake" in (cluster.data.applications ?? {})} />
            )}
            <SimpleGrid cols={{ base: 1, md: 2 }}>
              <Apps applications={routes.data.applications} />
              <Stack>
                <Versions versions={routes.data.versions} pools={cluster.data?.pools ?? []} />
                <Links />
              </Stack>
            </SimpleGrid>
            <Doctor />
            <Configuration config={routes.data.config} />
            <Changes appliedAt={routes.data.config.applied_at} />
          </>
        )}
      </Stack>
    </>
  );
}
