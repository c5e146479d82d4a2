import { Alert, Button, Code, Group, Text } from "@mantine/core";
import { IconAlertTriangle } from "@tabler/icons-react";

import { ApiError } from "#/api/errors";
import { useStrings } from "#/language";
import { strings } from "#/strings";

/** Shows an error in the server's words, with its code and the request id. */
export function ErrorAlert({ error, onRetry }: { error: Error; onRetry?: () => void }) {
  const t = useStrings(strings);
  const api = error instanceof ApiError ? error : null;
  return (
    <Alert color="red" title={t.somethingFailed} icon={<IconAlertTriangle aria-hidden />} role="alert">
      <Text size="sm">{error.message}</Text>
      {api !== null && (
        <Group gap="md" mt="xs">
          <Text size="xs">{t.code}: <Code>{api.code}</Code></Text>
          {api.requestId && <Text size="xs">{t.requestId}: <Code>{api.requestId}</Code></Text>}
        </Group>
      )}
      {onRetry && <Button mt="sm" size="xs" variant="default" onClick={onRetry}>{t.tryAgain}</Button>}
    </Alert>
  );
}
