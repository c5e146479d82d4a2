import{x as e}from"./index-DUP2hL0S.js";const o=[["path",{d:"M5 12l5 5l10 -10",key:"svg-0"}]],t=e("outline","check","Check",o);export{t as I};
