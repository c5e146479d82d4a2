import{C as e}from"./index-nO1biIm4.js";const o=[["path",{d:"M5 12l5 5l10 -10",key:"svg-0"}]],t=e("outline","check","Check",o);export{t as I};
