<<<<<<<< HEAD:moyin/console/built/assets/IconColumns2-CUyCBA8D.js
import{p as o}from"./index-ir0QF7Qi.js";const a=[["path",{d:"M3 4a1 1 0 0 1 1 -1h16a1 1 0 0 1 1 1v16a1 1 0 0 1 -1 1h-16a1 1 0 0 1 -1 -1v-16",key:"svg-0"}],["path",{d:"M12 3v18",key:"svg-1"}]],t=o("outline","columns-2","Columns2",a);export{t as I};
========
import{p as o}from"./index-CPyHUgms.js";const a=[["path",{d:"M3 4a1 1 0 0 1 1 -1h16a1 1 0 0 1 1 1v16a1 1 0 0 1 -1 1h-16a1 1 0 0 1 -1 -1v-16",key:"svg-0"}],["path",{d:"M12 3v18",key:"svg-1"}]],t=o("outline","columns-2","Columns2",a);export{t as I};
>>>>>>>> 8c7d00ad45b5a1a8fd771094d6d1b0bffb52620f:moyin/console/built/assets/IconColumns2-Cl5auvHV.js
