import { Box, Group, Paper, Title } from "@mantine/core";
import { Fragment, type ReactNode, useId } from "react";

/** A part of a page, with a heading that names it. */
export function Panel({ title, aside, children }: { title: string; aside?: ReactNode; children: ReactNode }) {
  const id = useId();
  return (
    <Paper withBorder p="md" component="section" aria-labelledby={id}>
      <Group justify="space-between" mb="sm" gap="xs">
        <Title order={3} size="h5" id={id}>{title}</Title>
        {aside}
      </Group>
      {children}
    </Paper>
  );
}

export type Fact = readonly [term: string, value: ReactNode];

/** Terms with their values; those without a value are left out. */
export function Facts({ facts }: { facts: readonly Fact[] }) {
  return (
    <Box
      component="dl" m={0} fz="sm"
      style={{ display: "grid", gridTemplateColumns: "minmax(90px, auto) 1fr", columnGap: 16, rowGap: 6 }}
    >
      {facts.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([term, value]) => (
        <Fragment key={term}>
          <Box component="dt" c="dimmed">{term}</Box>
          <Box component="dd" m={0} style={{ overflowWrap: "anywhere" }}>{value}</Box>
        </Fragment>
      ))}
    </Box>
  );
}
