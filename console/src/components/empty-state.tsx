import { Center, Stack, Text } from "@mantine/core";
import type { ReactNode } from "react";

/** Says that a list is empty, and what to do first. */
export function EmptyState({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <Center py="xl">
      <Stack align="center" gap="xs" maw={440}>
        <Text fw={600}>{title}</Text>
        <Text size="sm" c="dimmed" ta="center" component="div">{children}</Text>
      </Stack>
    </Center>
  );
}
