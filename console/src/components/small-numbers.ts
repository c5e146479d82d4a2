import { useLanguage } from "#/language";

/** Return a function that writes amounts far below a cent, too. */
export function useExactUsd() {
  const { language } = useLanguage();
  const format = new Intl.NumberFormat(language, {
    style: "currency", currency: "USD", maximumSignificantDigits: 3, minimumSignificantDigits: 1,
  });
  return (value: number) => format.format(value);
}

/** Return a function that writes a share of one in percent. */
export function usePercent() {
  const { language } = useLanguage();
  const format = new Intl.NumberFormat(language, { style: "percent" });
  return (value: number) => format.format(value);
}
