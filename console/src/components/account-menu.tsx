import { ActionIcon, Button, Group, Menu, useMantineColorScheme } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { IconLanguage, IconSunMoon } from "@tabler/icons-react";
import { useQueryClient } from "@tanstack/react-query";
import { memo } from "react";

import { type Caller, forgetCaller, signOut } from "#/api/session";
import { type Language, LANGUAGES, useLanguage, useStrings } from "#/language";
import { strings } from "#/strings";

const NEXT = { auto: "light", light: "dark", dark: "auto" } as const;

/** Shows who is signed in; chooses language and colours; signs out. */
export const AccountMenu = memo(function AccountMenu({ caller }: { caller: Caller }) {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const end = async () => {
    try {
      await signOut();
      forgetCaller(queries);
    } catch (error) {
      notifications.show({ color: "red", title: t.somethingFailed, message: (error as Error).message });
    }
  };
  return (
    <Group gap={4} wrap="nowrap">
      <LanguageMenu />
      <ThemeButton />
      <Menu position="bottom-end">
        <Menu.Target>
          <Button variant="subtle" size="compact-sm">{caller.name}</Button>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item component="a" href="/docs" target="_blank">{t.documentation}</Menu.Item>
          <Menu.Item onClick={() => void end()}>{t.signOut}</Menu.Item>
        </Menu.Dropdown>
      </Menu>
    </Group>
  );
});

export function LanguageMenu() {
  const t = useStrings(strings);
  const { language, choose } = useLanguage();
  return (
    <Menu position="bottom-end">
      <Menu.Target>
        <ActionIcon variant="subtle" aria-label={t.language}><IconLanguage size={18} /></ActionIcon>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.RadioGroup value={language} onChange={(key) => choose(key as Language)}>
          {Object.entries(LANGUAGES).map(([key, name]) => (
            <Menu.RadioItem key={key} value={key} lang={key} closeMenuOnClick>{name}</Menu.RadioItem>
          ))}
        </Menu.RadioGroup>
      </Menu.Dropdown>
    </Menu>
  );
}

function ThemeButton() {
  const t = useStrings(strings);
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return (
    <ActionIcon variant="subtle" aria-label={t.theme} onClick={() => setColorScheme(NEXT[colorScheme])}>
      <IconSunMoon size={18} />
    </ActionIcon>
  );
}
