import { Group, Progress, SimpleGrid, Stack, Text } from "@mantine/core";

import { strings } from "#/components/access/strings";
import { useFormat, useStrings } from "#/language";

/** A budget in its current period; amounts are decimal texts. */
export interface Budget {
  limit: string;
  of?: string;
  limit_usd: string;
  spent_usd: string;
  reserved_usd: string;
  left_usd: string;
  resets_at: string;
}

/** Shows what is spent, reserved and left of budgets. */
export function Budgets({ budgets }: { budgets: readonly Budget[] }) {
  const t = useStrings(strings);
  const format = useFormat();
  return (
    <SimpleGrid cols={{ base: 1, sm: Math.min(2, budgets.length) || 1 }}>
      {budgets.map((budget) => {
        const period = budget.limit === "usd_per_day" ? t.budgetDay : t.budgetMonth;
        const label = budget.of === undefined ? period : `${period} · ${t.of[budget.of] ?? budget.of}`;
        const [limit, spent, reserved] = [budget.limit_usd, budget.spent_usd, budget.reserved_usd].map(Number);
        const share = (value = 0) => (limit ? Math.min(100, (value / limit) * 100) : 100);
        const amount = t.spentOf(format.usd(spent ?? 0), format.usd(limit ?? 0));
        return (
          <Stack key={label} gap={4}>
            <Group justify="space-between" gap="xs">
              <Text size="sm" fw={500}>{label}</Text>
              <Text size="sm">{amount}</Text>
            </Group>
            <Progress.Root size="lg" aria-hidden>
              <Progress.Section value={share(spent)} color={share(spent) >= 90 ? "red" : undefined} />
              <Progress.Section value={Math.min(share(reserved), 100 - share(spent))} color="gray" />
            </Progress.Root>
            <Group justify="space-between" gap="xs">
              <Text size="xs" c="dimmed">
                {t.left(format.usd(Number(budget.left_usd)))}{reserved ? ` · ${t.reserved(format.usd(reserved))}` : ""}
              </Text>
              <Text size="xs" c="dimmed">{t.resets(format.ago(budget.resets_at))}</Text>
            </Group>
          </Stack>
        );
      })}
    </SimpleGrid>
  );
}
