/** The acts on one job: cancel, retry, run again, delete. */

import { Button, Group } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { IconPlayerStop, IconRefresh, IconTrash, IconWand } from "@tabler/icons-react";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Link, useLocation } from "wouter";

import { gateway } from "#/api/client";
import { hasScope, useCaller } from "#/api/session";
import { Confirm } from "#/components/confirm";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";

import { strings } from "../strings";
import { isOpen, type JobDetail, LIST } from "../types";

export function JobActs({ job }: { job: JobDetail }) {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const [, navigate] = useLocation();
  const queries = useQueryClient();
  const [asked, setAsked] = useState<"cancel" | "delete" | null>(null);
  const params = { params: { path: { job_id: job.id } } };
  const refresh = async () => {
    await queries.invalidateQueries({ queryKey: ["job", job.id] });
    void queries.invalidateQueries({ queryKey: ["jobs"] });
  };
  const retry = useMutation({
    mutationFn: () => gateway.POST("/jobs/{job_id}/retry", params),
    onSuccess: async () => {
      notifications.show({ message: t.retried });
      await refresh();
    },
  });
  if (!caller || !hasScope(caller, "jobs:write")) return null;

  const cancel = async () => {
    await gateway.POST("/jobs/{job_id}/cancel", params);
    notifications.show({ message: t.cancelling });
    await refresh();
  };
  const remove = async () => {
    await gateway.DELETE("/jobs/{job_id}", params);
    notifications.show({ message: t.deleted });
    void queries.invalidateQueries({ queryKey: ["jobs"] });
    navigate(LIST);
  };
  const open = isOpen(job);
  return (
    <>
      <Group gap="xs">
        {open && job.cancel_requested_by === null && (
          <Button
            variant="default" leftSection={<IconPlayerStop size={16} color="var(--mantine-color-red-6)" aria-hidden />}
            onClick={() => setAsked("cancel")}
          >
            {t.cancel}
          </Button>
        )}
        {(job.status === "failed" || job.status === "cancelled") && (
          <Button
            leftSection={<IconRefresh size={16} aria-hidden />} loading={retry.isPending}
            onClick={() => retry.mutate()}
          >
            {t.retry}
          </Button>
        )}
        {job.kind === "render" && (
          <Button
            component={Link} href={`~/console/render?job=${encodeURIComponent(job.id)}`} variant="default"
            leftSection={<IconWand size={16} aria-hidden />}
          >
            {t.again}
          </Button>
        )}
        {!open && (
          <Button
            variant="default" leftSection={<IconTrash size={16} color="var(--mantine-color-red-6)" aria-hidden />}
            onClick={() => setAsked("delete")}
          >
            {t.delete}
          </Button>
        )}
      </Group>
      {retry.isError && <ErrorAlert error={retry.error} />}
      <Confirm
        opened={asked === "cancel"} onClose={() => setAsked(null)} title={t.cancelOneTitle} action={t.cancel}
        onConfirm={cancel}
      >
        {t.cancelOne}
      </Confirm>
      <Confirm
        opened={asked === "delete"} onClose={() => setAsked(null)} title={t.deleteOneTitle} action={t.delete}
        onConfirm={remove}
      >
        {t.deleteOne}
      </Confirm>
    </>
  );
}
