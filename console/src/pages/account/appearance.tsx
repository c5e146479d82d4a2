import { Group, SegmentedControl, Select, Stack, Text, useMantineColorScheme } from "@mantine/core";

import { type Language, LANGUAGES, useLanguage, useStrings } from "#/language";
import { strings } from "#/pages/account/strings";

/** Chooses language and colours, which this browser keeps. */
export function Appearance() {
  const t = useStrings(strings);
  const { language, choose } = useLanguage();
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return (
    <Group align="start" gap="xl">
      <Select
        label={t.language} value={language} allowDeselect={false} w={180}
        data={Object.entries(LANGUAGES).map(([value, label]) => ({ value, label }))}
        onChange={(value) => value && choose(value as Language)}
      />
      <Stack gap={4}>
        <Text size="sm" fw={500}>{t.colours}</Text>
        <SegmentedControl
          aria-label={t.colours} value={colorScheme}
          onChange={(value) => setColorScheme(value)}
          data={(["auto", "light", "dark"] as const).map((value) => ({ value, label: t.schemes[value] }))}
        />
      </Stack>
    </Group>
  );
}
