import { Group, Title } from "@mantine/core";
import type { ReactNode } from "react";

/** The heading of a page, with its main acts on the right. */
export function PageHeader({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <Group justify="space-between" mb="md">
      <Title order={2} size="h3">{title}</Title>
      <Group gap="xs">{children}</Group>
    </Group>
  );
}
