/** Shows the files of the tenant, and what can be done with them. */

import { Alert, Button, Card, Group, Paper, Skeleton } from "@mantine/core";
import { memo, useCallback, useState } from "react";
import { Link, useSearchParams } from "wouter";

import { type Caller, hasScope, useCaller } from "#/api/session";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { PageHeader } from "#/components/page-header";
import { Check } from "#/components/plain";
import { useFormat, useStrings } from "#/language";

import { Compare } from "./compare";
import { type GalleryFilter, isFiltered, prefetchGallery, readFilter, useGallery } from "./data";
import { FavouriteButton } from "./favourite-button";
import { Filters } from "./filters";
import { SelectionBar } from "./selection-bar";
import { strings } from "./strings";
import { type PictureFile, Thumbnail } from "./thumbnail";
import { Viewer } from "./viewer";

export { prefetchGallery as prefetch };

const CARD = `${Card.classes.root} ${Paper.classes.root} picture`;

export default function GalleryPage() {
  const t = useStrings(strings);
  const [search, setSearch] = useSearchParams();
  const { data: caller } = useCaller();
  if (!caller) return null;
  const filter = readFilter(search);
  const change = (values: Record<string, string>) => {
    setSearch((old) => {
      for (const [name, value] of Object.entries(values)) {
        if (value) old.set(name, value);
        else old.delete(name);
      }
      return old;
    }, { replace: true });
  };
  return (
    <>
      <PageHeader title={t.title} />
      <Filters filter={filter} caller={caller} onChange={change} onClear={() => setSearch({}, { replace: true })} />
      <Files key={JSON.stringify(filter)} filter={filter} caller={caller} />
    </>
  );
}

/** The files of a filter: another one begins without a selection. */
function Files({ filter, caller }: { filter: GalleryFilter; caller: Caller }) {
  const t = useStrings(strings);
  const gallery = useGallery(filter);
  const [opened, setOpened] = useState<PictureFile | null>(null);
  const [selected, setSelected] = useState<Record<string, PictureFile>>({});
  const [compares, setCompares] = useState(false);
  const toggle = useCallback((file: PictureFile) => {
    setSelected(({ [file.id]: known, ...rest }) => (known ? rest : { ...rest, [file.id]: file }));
  }, []);
  const files = gallery.data?.pages.flatMap((page) => page.artifacts) ?? [];
  // Without those that have been deleted since, in the large view.
  const present = new Set(files.map(({ id }) => id));
  const chosen = Object.values(selected).filter(({ id }) => present.has(id));
  return (
    <>
      {chosen.length > 0 && (
        <SelectionBar
          files={chosen} mayWrite={hasScope(caller, "jobs:write")} onCompare={() => setCompares(true)}
          onNone={() => setSelected({})}
        />
      )}
      {gallery.error && <ErrorAlert error={gallery.error} onRetry={() => void gallery.refetch()} />}
      {gallery.isPending && (
        <div className="pictures">{Array.from({ length: 12 }, (_, index) => <Skeleton key={index} h={170} />)}</div>
      )}
      {gallery.isSuccess && files.length === 0 && (
        <Paper withBorder><Nothing filtered={isFiltered(filter)} hasMore={gallery.hasNextPage} mayWrite={hasScope(caller, "jobs:write")} /></Paper>
      )}
      <div className="pictures" role="list" aria-label={t.list}>
        {files.map((file) => (
          <PictureCard
            key={file.id} file={file} isSelected={file.id in selected} mayWrite={hasScope(caller, "jobs:write")}
            onSelect={toggle} onOpen={setOpened}
          />
        ))}
      </div>
      {gallery.hasNextPage && (
        <Group justify="center" mt="md">
          <Button variant="default" loading={gallery.isFetchingNextPage} onClick={() => void gallery.fetchNextPage()}>{t.more}</Button>
        </Group>
      )}
      {opened && <Viewer files={files} file={opened} onShow={setOpened} onClose={() => setOpened(null)} />}
      {compares && chosen.length === 2 && <Compare files={chosen} onClose={() => setCompares(false)} />}
    </>
  );
}

function Nothing({ filtered, hasMore, mayWrite }: { filtered: boolean; hasMore: boolean; mayWrite: boolean }) {
  const t = useStrings(strings);
  if (hasMore) return <Alert color="gray">{t.noMatchYet}</Alert>;
  if (filtered) return <EmptyState title={t.noMatch}>{t.noMatchHint}</EmptyState>;
  return (
    <EmptyState title={t.empty}>
      {t.emptyHint}
      {mayWrite && <Button component={Link} href="/render" size="xs" mt="sm" display="block" mx="auto" w="fit-content">{t.startRender}</Button>}
    </EmptyState>
  );
}

interface CardProps {
  file: PictureFile;
  isSelected: boolean;
  mayWrite: boolean;
  onSelect: (file: PictureFile) => void;
  onOpen: (file: PictureFile) => void;
}

/** Drawn again only when its file changes: the pages of a list that grows are many. */
const PictureCard = memo(function PictureCard({ file, isSelected, mayWrite, onSelect, onOpen }: CardProps) {
  const t = useStrings(strings);
  const format = useFormat();
  return (
    <div
      role="listitem" className={CARD} data-with-border data-orientation="vertical"
      style={isSelected ? { background: "var(--mantine-primary-color-light)" } : undefined}
    >
      <div className={Card.classes.section} data-orientation="vertical"><Thumbnail file={file} onOpen={() => onOpen(file)} /></div>
      <div className="line picture-acts">
        <Check isSmall checked={isSelected} onChange={() => onSelect(file)} aria-label={t.select(file.name)} />
        <span className="text-xs dimmed truncate" title={file.name}>
          {file.created_at ? format.ago(file.created_at) : file.name}
        </span>
        {mayWrite && <FavouriteButton file={file} />}
      </div>
    </div>
  );
});
