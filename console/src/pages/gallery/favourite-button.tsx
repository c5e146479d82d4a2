import { IconStar, IconStarFilled } from "@tabler/icons-react";

import { IconButton } from "#/components/plain";
import { useStrings } from "#/language";

import { useFavourite } from "./data";
import { strings } from "./strings";
import type { PictureFile } from "./thumbnail";

/** Marks a file as a favourite of the tenant, or removes the mark. */
export function FavouriteButton({ file, onChange }: { file: PictureFile; onChange?: (favourite: boolean) => void }) {
  const t = useStrings(strings);
  const change = useFavourite();
  const isFavourite = file.favourite === true;
  const Icon = isFavourite ? IconStarFilled : IconStar;
  return (
    <IconButton
      aria-pressed={isFavourite} aria-busy={change.isPending}
      aria-label={isFavourite ? t.removeFavourite(file.name) : t.addFavourite(file.name)}
      onClick={() => change.mutate({ id: file.id, favourite: !isFavourite }, { onSuccess: () => onChange?.(!isFavourite) })}
    >
      <Icon size={16} color={isFavourite ? "var(--mantine-color-yellow-7)" : undefined} />
    </IconButton>
  );
}
