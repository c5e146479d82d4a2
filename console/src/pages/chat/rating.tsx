import { ActionIcon, Tooltip } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { IconThumbDown, IconThumbUp } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";

import { call } from "#/api/client";
import { useStrings } from "#/language";

import { strings } from "./strings";

/** Rates an answer, from which the router learns. */
export function Rating({ requestId }: { requestId: string }) {
  const t = useStrings(strings);
  const rating = useMutation({
    mutationFn: async (score: number) => {
      const response = await call("/v1/feedback", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ request_id: requestId, score }),
      });
      return (await response.json()) as { learned: boolean };
    },
    onSuccess: ({ learned }) => notifications.show({ message: learned ? t.rated : t.ratedFrozen }),
    onError: (error) => notifications.show({ color: "red", message: error.message }),
  });
  const isGiven = rating.isSuccess || rating.isPending;
  return [
    { score: 1, label: t.good, icon: IconThumbUp },
    { score: 0, label: t.bad, icon: IconThumbDown },
  ].map((choice) => (
    <Tooltip key={choice.score} label={choice.label}>
      <ActionIcon
        variant={isGiven && rating.variables === choice.score ? "light" : "subtle"} color="gray"
        aria-label={choice.label} aria-pressed={isGiven && rating.variables === choice.score}
        disabled={isGiven && rating.variables !== choice.score}
        onClick={() => isGiven || rating.mutate(choice.score)}
      >
        <choice.icon size={16} />
      </ActionIcon>
    </Tooltip>
  ));
}
